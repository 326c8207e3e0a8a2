"""The rows of a recipe or of a node made ready to leave: parquet for each dataset type and split, a data card, and a record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.chain import finished, manifest
from pipeline.chain.stage import ROWS
from pipeline.data import recipe as recipes
from pipeline.data import types
from pipeline.data.types import Row
from pipeline.hub import leaks, readback
from pipeline.hub.leaks import Content
from pipeline.hub.upload import Delivery, Hub, sha256
from pipeline.system import hashes
from pipeline.system.errors import UserError, WorldError

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass
class Rows:
    """All rows of a recipe or of a node: dataset type → split → rows, with what was dropped."""

    name: str
    seed: int
    told: str  # what they are, in words
    again: str  # the variables of `make push-data` that name them
    kept: dict[str, dict[str, list[Row]]] = field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)  # dataset type → reason → count
    sources: list[list[str]] = field(default_factory=list)

    def parts(self) -> Iterator[tuple[str, str, list[Row]]]:
        """Yield dataset type, split and rows of every part that has any."""
        for type, splits in self.kept.items():
            for split, rows in splits.items():
                if rows:
                    yield type, split, rows

    def shared(self, type: str) -> int:
        """Return how many held-out rows of a dataset type are among those for training."""
        train, held_out = ({hashes.digest(row) for row in self.kept[type][split]} for split in recipes.SPLITS)
        return len(train & held_out)


def read(name: str, seed: int) -> Rows:
    """Return the rows of a recipe in every dataset type that it gives, as a stage with this seed reads them."""
    recipe = recipes.load(name)
    told = f"The rows of tristage's recipe `{recipe.name}`, as a stage with seed {seed} reads them."
    return _read(recipe, Rows(recipe.name, seed, told, f"RECIPE={recipe.name}"))


def of_node(runs: Path, name: str) -> Rows:
    """Return the rows that a finished node hands on; UserError where it hands on none, or they are no longer its own."""
    node = finished.named(runs, name)
    if node.family != ROWS:
        raise UserError(f"{node.folder}: hands on a model and no rows; make push pushes models")
    told = f"The rows that tristage's node `{name}` ({node.title}) made from {node.record['recipe']['name'] or 'no others'}."
    seed, type = int(node.record["seed"]), str(node.record["rows_type"])
    return _read(recipes.from_data(str(node.folder), type), Rows(name, seed, leaks.sentence(told), f"STAGE={name}"))


def _read(recipe: recipes.Recipe, found: Rows) -> Rows:
    """Fill in what a recipe gives in every dataset type."""
    seed, found.sources = found.seed, leaks.without_paths([[Path(file).name, mark] for file, mark in recipe.contents()])
    for type in recipe.types():
        read = {split: recipe.rows(type, split, seed) for split in recipes.SPLITS}
        found.kept[type] = {split: list(rows.kept) for split, rows in read.items()}
        found.dropped[type] = dict(read["train"].dropped + read["train"].truncated)
    return found


def stop(rows: Rows, token: str | None) -> None:
    """Raise UserError naming dataset type, split, row and kind, never the secret, where one is among the rows."""
    faults = [
        f"{rows.name}: {type}, {split}, row {number:,} holds {kind}; nothing was pushed"
        for type, split, part in rows.parts()
        for number, kind in leaks.row_secrets(part, token)
    ]
    if faults:
        raise UserError(*faults)


def pack(rows: Rows, repo: str, folder: Path, license: str, language: str) -> Delivery:
    """Write the rows as parquet into `folder` and return them with card and record, as they will lie in `repo`."""
    import pyarrow
    import pyarrow.parquet

    files: dict[str, Content] = {}
    for type, split, part in rows.parts():
        path = folder / type / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {key: [row.get(key) for row in part] for key in dict.fromkeys(key for row in part for key in row)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        files[path.relative_to(folder).as_posix()] = path
    digest = hashes.outputs({name: {"sha256": sha256(content)} for name, content in files.items()})
    tag = f"tristage-{digest[:12]}"
    files["README.md"] = _card(rows, repo, tag, license, language).encode()
    record = {
        "recipe": rows.name, "seed": rows.seed, "outputs": digest, "sources": rows.sources, "dropped": rows.dropped,
        "rows": {f"{type}/{split}": len(part) for type, split, part in rows.parts()},
        "pushed": {name: sha256(content) for name, content in sorted(files.items())},
    }  # fmt: skip
    files[manifest.NAME] = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
    digests = {name: sha256(content) for name, content in files.items()}
    return Delivery(repo, files, digests, tag, f"{rows.name} {digest[:12]}, by tristage", "dataset")


def _card(rows: Rows, repo: str, tag: str, license: str, language: str) -> str:
    from huggingface_hub import DatasetCardData

    total = sum(len(part) for _, _, part in rows.parts())
    parts: dict[str, list[dict[str, str]]] = {}
    for type, split, _ in rows.parts():
        parts.setdefault(type, []).append({"split": split, "path": f"{type}/{split}.parquet"})
    data = DatasetCardData(
        license=license or "unknown", language=language or None, pretty_name=repo.split("/")[1], tags=["tristage", *parts],
        size_categories=next((name for size, name in _SIZES if total < size), "n>10M"),
        configs=[
            {"config_name": type, "data_files": given, **({"default": True} if not number else {})}
            for number, (type, given) in enumerate(parts.items())
        ],
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_body(rows, repo, tag, license, list(parts))) + "\n"


def _body(rows: Rows, repo: str, tag: str, license: str, parts: Sequence[str]) -> Iterator[str]:
    yield f"# {repo.split('/')[1]}\n\n{rows.told}\n"
    yield f'```python\nfrom datasets import load_dataset\nrows = load_dataset("{repo}", "{parts[0]}", split="train")\n```\n'
    yield f"The revision `{tag}` names exactly these rows.\n\n| subset | split | rows | columns |\n|---|---|---:|---|"
    yield from (f"| {type} | {split} | {len(part):,} | {types.load(type).columns} |" for type, split, part in rows.parts())
    shared = sum(rows.shared(type) for type in parts)
    yield f"\n{shared or 'No'} rows of `held_out` are in `train`, too; models are trained on `train` and measured on `held_out`.\n"
    yield "A `group`, where there is one, names rows that belong together and are never on both sides of a split.\n"
    yield "## Dropped\n"
    lost = [f"- {type}: {count:,} {reason}" for type, reasons in rows.dropped.items() for reason, count in reasons.items()]
    yield "\n".join(lost or ["Nothing."])
    yield "\n## Where it comes from\n\n| file or data set | sha256 or revision |\n|---|---|"
    yield from (f"| {name} | `{mark or 'the newest'}` |" for name, mark in rows.sources)
    yield f"\nRepeated by `make push-data {rows.again}` of tristage."
    said = "as its publisher gave it" if license else "nobody said which; the terms of the sources hold"
    yield f"\nLicence: {license or 'unknown'}, {said}."


def compare(hub: Hub, delivery: Delivery, commit: str, rows: Rows) -> str:
    """Hold pushed rows against the recipe's: file digests, and every row as `datasets` reads it; WorldError if they differ."""
    import tempfile

    import datasets

    with readback.fetched(hub, delivery.repo, commit, "dataset") as folder, tempfile.TemporaryDirectory() as cache:
        faults = readback.differences(folder, delivery.digests)
        for type, split, part in rows.parts() if not faults else ():
            read = datasets.load_dataset(str(folder), type, split=split, cache_dir=cache)
            if len(read) != len(part) or any(_row(one) != _row(other) for one, other in zip(read, part, strict=True)):
                faults.append(f"{type}/{split} holds other rows")
    if faults:
        raise WorldError(f"{delivery.repo}: what was read back is not what was pushed: {'; '.join(faults)}")
    total = sum(len(part) for _, _, part in rows.parts())
    return f"{len(delivery.files)} files by digest, {total:,} rows by load_dataset"


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def weights(delivery: Delivery) -> frozenset[str]:
    """Return the files that a data set's tag stands for."""
    return frozenset(name for name in delivery.files if name.endswith(".parquet"))

"""A stage made ready to leave: the files that may, a card, a picture of the loss, a record without this machine's names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.system import hashes
from pipeline.system.errors import UserError
from pipeline.evaluation import task
from pipeline.hub import card, curve, gate, leaks, sections
from pipeline.hub.leaks import Content
from pipeline.hub.upload import Delivery, sha256

LICENSE = "apache-2.0"


@dataclass(frozen=True)
class Terms:
    """What the person decides about the cards."""

    license: str = ""
    language: str = ""
    datasets: Sequence[str] = ()
    watts: float = 0.0
    adapter: bool = False


@dataclass(frozen=True)
class Parcel:
    """A stage that is ready to leave."""

    folder: Path
    delivery: Delivery
    loader: str  # Auto class that loads it
    weights: frozenset[str]  # the files that its tag stands for
    orphan: bool = False  # it has a parent, which is not on the hub
    under: tuple[str, str] | None = None  # repository and revision that its adapter goes on
    stays: Sequence[str] = ()  # files of the stage that are not among those that may leave


def tag(folder: Path, record: Mapping[str, Any]) -> str:
    """Return the tag of a stage, from the digest over the files that are there."""
    there = {name: {"sha256": hashes.read(folder / name)} for name in record["files"] if (folder / name).is_file()}
    return f"tristage-{manifest.outputs(there)[:12]}"


def pack(
    folder: Path, repo: str, shelves: Mapping[str, tuple[str, str]], summary: Mapping[str, Any] | None, terms: Terms,
    forced: Sequence[str] = (),
) -> Parcel:  # fmt: skip
    """Return a finished stage as it will lie in `repo`; `shelves`: outputs → repository and tag of the stages on the hub.

    Raises UserError where an adapter is asked for and its base is not on the hub.
    """
    line = gate.lineage(folder)
    record = line[-1][1]
    stage, summary = str(record["stage"]), task.summary(record) or summary
    own = {name: folder / name for name in record["files"] if (folder / name).is_file()}
    files: dict[str, Content] = {name: path for name, path in own.items() if leaks.may_leave(name)}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if "config.json" in files else {}
    base, under = _base(record, shelves)
    adapter = terms.adapter and "adapter/adapter_config.json" in own
    weights = frozenset(files)
    if adapter:
        files |= _adapter(own, folder, line, base, under)
    forced = [leaks.sentence(reason) for reason in forced]
    measured = summary if summary and summary["measured"].get(stage) == record["outputs"] else None
    log = _log(folder)
    if log:
        files[sections.CURVE] = curve.draw(log, f"{stage}: training loss", *_floor(stage, measured)).encode()
    subject = card.Subject(
        repo, shelves[record["outputs"]][1], [leaks.clean(older) for _, older in line], shelves, config, log=log, summary=measured,
        template="chat_template.jinja" in files, base=base, adapter=adapter, forced=forced, watts=terms.watts,
        license=terms.license or LICENSE, license_given=bool(terms.license), language=terms.language or _language(line),
        datasets=terms.datasets or _datasets(line),
    )  # fmt: skip
    files["README.md"] = card.write(subject).encode()
    digests = {name: sha256(content) for name, content in sorted(files.items())}
    sent = leaks.clean(record) | {"pushed": dict(digests), "forced": forced}
    files[manifest.NAME] = (json.dumps(sent, indent=2, ensure_ascii=False) + "\n").encode()
    digests[manifest.NAME] = sha256(files[manifest.NAME])
    delivery = Delivery(repo, files, digests, shelves[record["outputs"]][1], f"{stage} {record['outputs'][:12]}, by tristage")
    stays = sorted(name for name in own if name not in files)
    return Parcel(
        folder, delivery, subject.auto, weights, bool(record["parents"]) and not base, under if adapter else None, stays
    )


def _base(record: Mapping[str, Any], shelves: Mapping[str, tuple[str, str]]) -> tuple[str, tuple[str, str] | None]:
    """Return the hub id of a stage's parent, and its repository with a revision; empty where it is not on the hub."""
    for made in record["parents"]:
        if "hub" in made:
            return str(made["hub"]), (str(made["hub"]), "main")
        if made.get("outputs") in shelves:
            return shelves[made["outputs"]][0], shelves[made["outputs"]]
    adopted = str(record["config"].get("model", ""))
    return (
        adopted if adopted.count("/") == 1 and not adopted.startswith((".", "/", "~")) and not Path(adopted).exists() else ""
    ), None


def _adapter(
    own: Mapping[str, Path], folder: Path, line: Sequence[tuple[Path, Any]], base: str, under: tuple[str, str] | None
) -> dict[str, Content]:
    """Return the adapter's files, its base being the one on the hub."""
    if under is None:
        raise UserError(f"ADAPTER=1: {folder}: its parent is not on the hub; push it first, or leave ADAPTER away")
    if len(line) > 1:
        sizes = [json.loads((path / "config.json").read_text(encoding="utf-8")).get("vocab_size") for path, _ in line[-2:]]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"ADAPTER=1: {folder}: added tokens to its base, so its adapter fits no pushed model; leave ADAPTER away"
            )
    settings = json.loads(own["adapter/adapter_config.json"].read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base, "revision": under[1]}
    found: dict[str, Content] = {name: path for name, path in own.items() if leaks.ADAPTER.fullmatch(name)}
    return found | {"adapter/adapter_config.json": (json.dumps(settings, indent=2) + "\n").encode()}


def _log(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [entry for line in lines if line.endswith("}") and "loss" in (entry := json.loads(line))]


def _floor(stage: str, summary: Mapping[str, Any] | None) -> tuple[float | None, str]:
    """Return what a stage's training loss can be held against in its picture: the exact floor, where there is one."""
    floor = (summary or {}).get("stages", {}).get(stage, {}).get("floor")
    return (float(floor["value"]), "entropy of the text") if floor else (None, "")


def _language(line: Sequence[tuple[Path, Any]]) -> str:
    found = (str(record["config"].get("language", "")) for _, record in line)
    return next((language for language in found if language), "")


def _datasets(line: Sequence[tuple[Path, Any]]) -> list[str]:
    """Return the data sets of a hub among what a stage and those before it were trained on."""
    given = [
        name for _, record in line for name, mark in record["recipe"]["sources"] if name.count("/") == 1 and len(mark) != 64
    ]
    return list(dict.fromkeys(given))

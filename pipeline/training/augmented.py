"""What an augmentation adds to a run: further training rows, and examples that vary in each epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.augmentation import Augmentation
from pipeline.augmentation.collator import Varying
from pipeline.chain.run import Run
from pipeline.data import split, types
from pipeline.data.rows import Rows, read, save
from pipeline.system import cache, hashes
from pipeline.system.errors import UserError
from pipeline.tasks import Task

_FILE, _NUMBERS = "rows.parquet", "numbers.json"


def fits(augmentation: Augmentation, task: Task, name: str) -> None:
    """Raise UserError where an augmentation would break what a task learns from."""
    if task.keeps == "positions" and augmentation.changes != "tokens":
        raise UserError(f"augmentation: {name}: moves words, and this task's targets are positions of words; try token_dropout")
    if task.keeps == "pixels":
        raise UserError(f"augmentation: {name}: changes texts, and this task reads pictures")
    if task.keeps == "tokens" and augmentation.changes != "rows":
        raise UserError(
            f"augmentation: {name}: changes tokens, by which this task finds equal texts in a batch; try back_translation"
        )


def examples(
    augmentation: Augmentation, run: Run, rows: Rows, aside: Rows, encode: Callable[[Rows], Iterator[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Yield the examples of rows, and then of their further versions under the numbers of the rows that they come from.

    Versions that ask what a row of `aside` or of validation asks are left out, since they would be looked at twice.
    """
    yield from encode(rows)
    if augmentation.changes != "rows":
        return
    reads = run.signature.reads
    kind = types.load(reads)
    seen = {split.key({}, kind.asked(row)) for some in (aside.kept, rows.validation) for row in some}
    made = [one for one in _kept(augmentation, run, rows) if split.key({}, kind.asked(one[1])) not in seen]
    if not made:
        raise UserError(
            f"augmentation: none of {len(rows.kept):,} rows came back with other words in all of its texts; ask the "
            "translator by hand, or leave augmentation away"
        )
    more = Rows(kept=[row for _, row in made])
    used = 0
    for example in encode(more):
        used += 1
        yield example | {"row": made[example["row"]][0]}
    run.record["augmentation"] = {"rows": len(made), "examples": used, "dropped": dict(more.dropped_by_encoding)}
    run.say(f"augmentation: {len(made):,} further rows of {len(rows.kept):,}")


def _kept(augmentation: Augmentation, run: Run, rows: Rows) -> list[tuple[int, dict[str, Any]]]:
    """Return the further rows, which are kept by the digest of all that decides them."""
    told = rows.identity or hashes.digest([rows.kept[number] for number in range(len(rows.kept))])
    models = {role: run.parents[role] for role in augmentation.takes if role in run.parents}
    known = {role: run.record["request"]["parents"][role] for role in models}
    identity = cache.key("augmented", told, known, repr(augmentation))

    def make(folder: Path) -> None:
        made = list(augmentation.further(rows.kept, types.load(run.signature.reads), models))
        save(folder / _FILE, [row for _, row in made])
        (folder / _NUMBERS).write_text(json.dumps([number for number, _ in made]), encoding="utf-8")

    folder = cache.made(f"rows-{identity}", make)
    numbers = json.loads((folder / _NUMBERS).read_text(encoding="utf-8"))
    return list(zip(numbers, read(folder / _FILE), strict=True))


def collator(augmentation: Augmentation, run: Run, made: Any, tokenizer: Any) -> Any:
    """Return a collator that varies examples; UserError where the tokenizer has nothing for it."""
    if fault := augmentation.fault(tokenizer):
        raise UserError(f"augmentation: {fault}")
    return made if augmentation.changes == "rows" else Varying(made, augmentation, tokenizer, run.seed, run.stage.kind)

"""One pass over rows, block by block on all cores: rules, contamination, keys of duplicates; the blocks are kept on disk."""

from __future__ import annotations

import base64
import functools
import json
import multiprocessing
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.chain import blocks
from pipeline.chain.blocks import Block
from pipeline.curation import contamination, duplicates, rules
from pipeline.curation.words import mapped
from pipeline.data import types
from pipeline.data.rows import Rows, characters
from pipeline.data.tokens import batched
from pipeline.data.types import Row
from pipeline.system import cores

if TYPE_CHECKING:
    from pipeline.chain.run import Run

_SAMPLES, _SHOWN = 3, 300  # rows of a reason that the record shows, and characters of each
Item = tuple[str, Row]  # where a row comes from, and the row


@dataclass(frozen=True)
class Plan:
    """What is done to each row; the same in every process."""

    type: str
    given: str  # rules with their options, as JSON, so that it can be a key
    near: bool
    index: Path | None = None  # of what no row may hold
    share: float = 0.0

    @functools.cached_property
    def loaded(self) -> list[rules.Rule]:
        """The rules, in their order."""
        return rules.load_all(json.loads(self.given))


@dataclass
class Tally:
    """What became of the rows of a split."""

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def drop(self, reason: str, where: str, text: str, more: Mapping[str, str] | None = None) -> None:
        """Count a row that is dropped, and keep the first ones of each reason as samples."""
        self.dropped[reason] += 1
        self._show(reason, {"row": where, "text": shortened(text), **(more or {})})

    def _show(self, reason: str, sample: dict[str, str]) -> None:
        shown = self.samples.setdefault(reason, [])
        if len(shown) < _SAMPLES:
            shown.append(sample)

    def add(self, block: Mapping[str, Any]) -> None:
        """Take in what a block counted."""
        self.rows += block["read"]
        self.dropped.update(block["dropped"])
        self.changed.update(block["changed"])
        for reason, samples in block["samples"].items():
            for sample in samples:
                self._show(reason, sample)

    def record(self) -> dict[str, Any]:
        """Return what the manifest says of the split."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "changed": dict(self.changed),
            "samples": self.samples,
        }


def shortened(text: str) -> str:
    """Return a text, or its beginning."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN].rstrip() + "…"


@functools.lru_cache(maxsize=2)
def _shared(plan: Plan) -> Plan:
    """Return a plan whose rules are loaded once in a process."""
    return plan


def clean(plan: Plan, items: list[Item]) -> dict[str, Any]:
    """Return what is left of a block of rows, with their keys and all that is counted; the same in whichever process."""
    plan = _shared(plan)
    kind, tally, left = types.load(plan.type), Tally(), list[Item]()
    for where, row in items:
        row, said = _changed(plan, row, tally), ""
        reason = kind.fault(row) or _unwritable(row)
        if not reason:
            said = kind.document(row)
            reason = next((found for rule in plan.loaded if (found := rule.fault(said))), None)
        if not reason and plan.index and (name := contamination.opened(plan.index).holds(row, plan.share)):
            reason = f"holds a passage of {name}"
        if reason:
            tally.drop(reason, where, said or kind.document(row))
        else:
            left.append((where, row))
    keys = duplicates.keys([row for _, row in left], plan.near)
    told = tally.record() | {"read": len(items), "changed": {key: count for key, count in tally.changed.items() if count}}
    return told | {"left": left, "keys": base64.b64encode(keys.tobytes()).decode()}


def _unwritable(row: Row) -> str | None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, which no file holds"
    return None


def _changed(plan: Plan, row: Row, tally: Tally) -> Row:
    for rule in plan.loaded:
        if type(rule).changed is not rules.Rule.changed:
            row = mapped(row, functools.partial(rule.changed, counts=tally.changed))
    return row


def cleaned(run: Run, split: str, rows: Rows, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the blocks of a split, in order; those that a killed run left are read and not made again."""

    def name(number: int) -> str:
        return f"{split}-{number:06}"

    def keep(number: int, value: dict[str, Any]) -> dict[str, Any]:
        blocks.keep(run.output, name(number), Block(mark, value))
        return value

    mark = run.record["inputs"]
    number_of_cores = cores.count()
    waiting: deque[tuple[int, Future[dict[str, Any]] | dict[str, Any]]] = deque()
    with ExitStack() as stack:
        stack.enter_context(cores.unbroken())
        pool: ProcessPoolExecutor | None = None

        def ready() -> dict[str, Any]:
            number, found = waiting.popleft()
            return keep(number, found.result()) if isinstance(found, Future) else found

        for number, items in enumerate(batched(_items(rows), lambda item: characters(item[1]))):
            found = blocks.kept(run.output, name(number), run.say)
            if found and found.mark == mark:
                waiting.append((number, found.value))
            elif number_of_cores == 1 or (pool is None and len(rows.kept) == len(items)):
                waiting.append((number, keep(number, clean(plan, items))))
            else:
                pool = pool or stack.enter_context(
                    ProcessPoolExecutor(number_of_cores, multiprocessing.get_context("spawn"), cores.begin)
                )
                waiting.append((number, pool.submit(clean, plan, items)))
            while len(waiting) > (2 * number_of_cores if pool else 0):
                yield ready()
        while waiting:
            yield ready()


def _items(rows: Rows) -> Iterable[Item]:
    origins = rows.origins or (f"{rows.name}: row {number}" for number in range(1, len(rows.kept) + 1))
    return zip(origins, rows.kept, strict=True)

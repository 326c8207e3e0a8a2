"""Rows → examples on disk, a shard at a time: kept by digest where it is known what they are made of, resumed after a kill."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.rows import Rows, characters
from pipeline.data.tokens import batched, write
from pipeline.system import cache
from pipeline.system.process import Progress

if TYPE_CHECKING:
    from datasets import Dataset

    from pipeline.data.types import Row

Encode = Callable[[Rows], Iterable[dict[str, Any]]]  # rows → examples, each with the number of its row under `row`
_SHARD = 200_000_000  # characters of rows, about, of which the examples are one file
_COUNTED = ("dropped_by_encoding", "truncated", "too_long")  # what encoding counts, by reason


def encoded(rows: Rows, encode: Encode, identity: str, folder: Path, say: Callable[[str], None]) -> Dataset:
    """Return the examples of rows, which `encode` gets in parts, in order; what it counts is added to the rows' counts.

    `identity`: digest of all that decides them, by which they are kept and found again; where it is empty they are written
    into `folder`, anew.
    """
    if identity:
        fresh: list[Path] = []

        def make(folder: Path) -> None:
            fresh.append(folder)
            _write(rows, encode, folder, say)

        folder = cache.made(f"tokens-{identity}", make)
        if not fresh:
            say("its tokens are kept from before; nothing is tokenised")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write(rows, encode, folder, say)
    return opened(rows, folder)


def opened(rows: Rows, folder: Path) -> Dataset:
    """Return the examples in a folder, and add what was counted with them to the rows' counts."""
    import datasets

    marks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("shard-*.json"))]
    for name in _COUNTED:
        for mark in marks:
            getattr(rows, name).update(mark[name])
    files = [mark["file"] for mark in marks if mark["examples"]] or [marks[0]["file"]]
    shards = [datasets.Dataset.from_file(str(folder / file)) for file in files]
    return shards[0] if len(shards) == 1 else datasets.concatenate_datasets(shards)


def _write(rows: Rows, encode: Encode, folder: Path, say: Callable[[str], None]) -> None:
    """Write shards, after those that are there already; the mark of a shard, written last, says where the next begins."""
    done = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("shard-*.json"))]
    start, number = (done[-1]["next"] if done else 0), len(done)
    if done:
        say(f"goes on with the tokens of row {start + 1:,}")
    progress, began = Progress(say), time.monotonic()
    while start < len(rows.kept) or not number:
        counted = {name: Counter[str]() for name in _COUNTED}
        state = {"next": start, "characters": 0}
        examples = _shard(rows, encode, start, counted, state, progress, began)
        name = f"shard-{number:05}"
        partial = folder / f"{name}.partial"
        found = len(write(examples, partial))
        partial.replace(folder / f"{name}.arrow")
        mark = {"file": f"{name}.arrow", "next": state["next"], "examples": found, **counted}
        (folder / f"{name}.mark").write_text(json.dumps(mark), encoding="utf-8")
        (folder / f"{name}.mark").replace(folder / f"{name}.json")
        start, number = state["next"], number + 1


def _shard(
    rows: Rows, encode: Encode, start: int, counted: dict[str, Counter[str]], state: dict[str, int], progress: Progress, began: float
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield the examples of rows from `start` on, as many as make a shard."""
    first = start
    for batch in batched(_from(rows, start), characters):
        part = replace(rows, kept=batch, origins=[], dropped_by_encoding=Counter(), truncated=Counter(), too_long=Counter())
        for example in encode(part):
            yield example | {"row": example["row"] + first}
        for name in _COUNTED:
            counted[name].update(getattr(part, name))
        first += len(batch)
        state["next"], state["characters"] = first, state["characters"] + sum(map(characters, batch))
        progress.tell(lambda: f"tokenises: {state['next']:,} of {len(rows.kept):,} rows in {time.monotonic() - began:.0f} s")
        if state["characters"] >= _SHARD:
            return


def _from(rows: Rows, start: int) -> Iterator[Row]:
    step = 1000
    for begin in range(start, len(rows.kept), step):
        yield from rows.kept[begin : begin + step]

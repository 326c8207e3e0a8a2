"""Rows → examples on disk, a shard at a time: kept by digest where it is known what they are made of, resumed after a kill."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.kept import spans
from pipeline.data.rows import Rows
from pipeline.data.token_tables import tables, write_tables
from pipeline.system import cache, cores
from pipeline.system.process import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Encode = Callable[[Rows], Iterable[dict[str, Any]]]  # rows → examples, each with the number of its row under `row`
_SHARD = 400_000_000  # bytes of examples, about, that are one file
_COUNTED = ("dropped_by_encoding", "truncated", "too_long")  # what encoding counts, by reason


def encoded(
    rows: Rows, encode: Encode, identity: str, folder: Path, say: Callable[[str], None], by_part: bool = True
) -> Dataset:
    """Return the examples of rows, which `encode` gets in parts, in order; what it counts is added to the rows' counts.

    `identity`: digest of all that decides them, by which they are kept and found again; where it is empty they are written
    into `folder`, anew. `by_part`: no, where the examples of a row depend on others, so that `encode` gets all rows at once.
    """
    if identity:
        fresh: list[Path] = []

        def make(folder: Path) -> None:
            fresh.append(folder)
            _write(rows, encode, folder, say, by_part)

        folder = cache.made(f"tokens-{identity}", make)
        if not fresh:
            say("its tokens are kept from before; nothing is tokenised")
    else:
        write(rows, encode, folder, say, by_part)
    return opened(rows, folder)


def write(
    rows: Rows,
    examples: Iterable[dict[str, Any]] | Encode,
    folder: Path,
    say: Callable[[str], None],
    by_part: bool = True,
) -> None:
    """Write examples into `folder`, anew; those that are given as such have counted in the rows themselves."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if callable(examples):
        _write(rows, examples, folder, say, by_part)
    else:
        _write_whole(Rows(rows.kept), examples, folder, say)


def _write_whole(rows: Rows, examples: Iterable[dict[str, Any]], folder: Path, say: Callable[[str], None]) -> None:
    """Write examples as one shard, with what they count in `rows` until the last of them is made."""
    told = Progress(say).along(examples, lambda number: f"tokenises: {number:,} examples")
    _write_shard(folder, 0, tables(told), {name: getattr(rows, name) for name in _COUNTED}, {"next": len(rows.kept)})


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


class _Part(NamedTuple):
    """The examples of some rows."""

    next: int  # the row after them
    tables: list[pa.Table]
    counted: dict[str, Counter[str]]


def _write(rows: Rows, encode: Encode, folder: Path, say: Callable[[str], None], by_part: bool) -> None:
    """Write shards, after those that are there already; the mark of a shard, written last, says where the next begins."""
    if not by_part:
        whole = Rows(rows.kept, name=rows.name)
        _write_whole(whole, encode(whole), folder, say)
        return
    done = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("shard-*.json"))]
    start, number = (done[-1]["next"] if done else 0), len(done)
    if done:
        say(f"goes on with the tokens of row {start + 1:,}")
    with contextlib.closing(_parts(rows, encode, start, say)) as parts:
        while start < len(rows.kept) or not number:
            counted = {name: Counter[str]() for name in _COUNTED}
            state = {"next": start}
            _write_shard(folder, number, _tables(parts, counted, state), counted, state)
            start, number = state["next"], number + 1


def _write_shard(
    folder: Path, number: int, tables: Iterator[pa.Table], counted: Mapping[str, Counter[str]], state: Mapping[str, int]
) -> None:
    """Write the examples of a shard and, last, its mark; what is counted and where the next begins is known by then."""
    name = f"shard-{number:05}"
    partial = folder / f"{name}.partial"
    found = write_tables(tables, partial)
    partial.replace(folder / f"{name}.arrow")
    mark = {"file": f"{name}.arrow", "examples": found, **state, **counted}
    (folder / f"{name}.mark").write_text(json.dumps(mark), encoding="utf-8")
    (folder / f"{name}.mark").replace(folder / f"{name}.json")


def _parts(rows: Rows, encode: Encode, start: int, say: Callable[[str], None]) -> Generator[_Part]:
    """Yield the examples of rows from `start` on, some rows at a time; they are encoded on all cores."""
    progress, began = Progress(say), time.monotonic()
    with contextlib.closing(cores.each(lambda span: _part(rows, encode, span), spans(rows.kept, start))) as parts:
        for part in parts:
            yield part
            progress.tell(lambda: f"tokenises: {part.next:,} of {len(rows.kept):,} rows in {time.monotonic() - began:.0f} s")  # noqa: B023


def _part(rows: Rows, encode: Encode, span: range) -> _Part:
    part = Rows(rows.kept[span.start : span.stop], name=rows.name)
    examples = (example | {"row": example["row"] + span.start} for example in encode(part))
    return _Part(span.stop, list(tables(examples)), {name: getattr(part, name) for name in _COUNTED})


def _tables(parts: Iterator[_Part], counted: Mapping[str, Counter[str]], state: dict[str, int]) -> Iterator[pa.Table]:
    """Yield as many tables of examples as make a shard."""
    size = 0
    for part in parts:
        state["next"] = part.next
        for name, counter in counted.items():
            counter.update(part.counted[name])
        yield from part.tables
        size += sum(table.nbytes for table in part.tables)
        if size >= _SHARD:
            return

"""Rows of one type with what was counted on the way to them, and the files in which a node hands rows on."""

from __future__ import annotations

import json
import math
import random
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import kept, parquet, types
from pipeline.data.mixture import Part
from pipeline.data.types import Row
from pipeline.system import cache, hashes
from pipeline.system.errors import UserError
from pipeline.system.words import counted

if TYPE_CHECKING:
    import pyarrow

    from pipeline.data.stream import Stream

SPLITS = ("train", "held_out")
_SORTED = 500_000  # keys of rows that are sorted at once
_PART, _CHARACTERS = 20_000, 16_000_000  # rows, and about the characters, that are written at once


@dataclass
class Rows:
    """What a recipe gave for one split: the rows, how many were dropped for which reason, and which formats were recognised."""

    kept: Sequence[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_by_encoding: Counter[str] = field(default_factory=Counter)  # of the kept rows, those that gave no example
    too_long: Counter[str] = field(default_factory=Counter)  # of those, the lengths of rows beyond max_length, rounded up
    truncated: Counter[str] = field(default_factory=Counter)  # parts of kept rows that no example holds
    formats: Counter[str] = field(default_factory=Counter)
    held_out: int = 0  # rows of the other split that the same pass went by
    origins: Sequence[str] = field(default_factory=list)  # of the kept rows, where they were read from files
    name: str = ""  # of the recipe
    validation: Sequence[Row] = field(default_factory=list)  # rows for training that are only looked at while it goes on
    parts: Sequence[Part] = ()  # where each source stands among the kept rows, where sources have shares of the tokens
    named: list[str] = field(default_factory=list)  # rows that were dropped, each with its reason
    notes: Sequence[str] = ()  # what the user should know of how they were read
    stream: Stream | None = None  # what the rows are a sample of, where they are streamed
    identity: str = ""  # digest of all that decides the rows, by which what is made from them is kept; empty for none

    def origin(self, number: int) -> str:
        """Return in words where a kept row comes from: file and line, or its number in the recipe and how it begins."""
        if self.origins:
            return self.origins[number]
        return f"{self.name}: row {number + 1} ({json.dumps(self.kept[number], ensure_ascii=False)[:60]}...)"

    def hold_back(self, share: float, seed: int, type: str) -> None:
        """Move about a share of the kept rows to `validation`, by a hash of their group or of the first row that asks the same.

        Raises UserError where that leaves no row on one of the two sides.
        """
        from pipeline.data import split  # which builds on this module

        asked, keys, drawn = types.load(type).asked, array("Q"), bytearray()
        for row in self.kept:
            keys.append(int.from_bytes(split.key(row, asked(row))[:8]))
            drawn.append(int(hashes.digest([row.get("group") or row, seed])[:8], 16) < share * 2**32)
        wanted = _as_the_first(keys, drawn)
        back, left = (array("q", (number for number, out in enumerate(wanted) if out == side)) for side in (1, 0))
        self.validation = chosen(self.kept, back)
        self.keep(left, share, seed, "by what is asked")
        if not self.validation or not self.kept:
            raise UserError(
                f"validation: {len(self.validation):,} of {len(wanted):,} rows were held back; "
                "give another share, more rows, or patience: 0"
            )

    def keep(self, left: Sequence[int], *why: Any) -> None:
        """Keep the rows with these numbers, in ascending order, and no others; `why`: JSON values that decide which these are."""
        self.kept = chosen(self.kept, left)
        self.origins = chosen(self.origins, left) if self.origins else []
        self.parts = [
            part._replace(start=bisect_left(left, part.start), stop=bisect_left(left, part.stop)) for part in self.parts
        ]
        self.identity = self.identity and cache.key(self.identity, *why)

    def clean(self, rows: Iterable[Row], type: str, file: Path | None = None) -> None:
        """Keep rows on disk, and count by reason those that can't be used; a row may say itself why, under `dropped`."""

        def write(writer: kept.Writer) -> None:
            for number, row in self.sift(rows, type):
                writer.add(row, f"{file}: row {number}" if file else "")

        self.kept, origins = kept.spooled(write, self.name)
        self.origins = origins if file else []

    def sift(self, rows: Iterable[Row], type: str) -> Iterator[tuple[int, Row]]:
        """Yield the rows that can be used, each with its number among all, from 1 on; count the others by reason."""
        fault = types.load(type).fault
        for number, row in enumerate(rows, start=1):
            reason = row.get("dropped") or fault(row)
            if reason:
                self.dropped[reason] += 1
            else:
                yield number, row

    def usable(self, split: str) -> Rows:
        """Return these rows; UserError where nothing is left to train on, or most pairs prefer nothing."""
        if split != "train":
            return self
        pairs = self.dropped["chosen equals rejected"]
        if pairs and pairs >= len(self.kept):
            raise UserError(
                f"{self.name}: chosen equals rejected in {pairs:,} of {pairs + len(self.kept):,} pairs; nothing to prefer"
            )
        if not self.kept:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items()) or "there was none"
            raise UserError(f"{self.name}: no row is left for training ({reasons})")
        return self


def _as_the_first(keys: array[int], drawn: bytearray) -> bytearray:
    """Return for each row what was drawn for the first row with its key; in parts, since sorting takes memory."""
    import numpy as np

    given, found = np.frombuffer(keys, np.uint64), np.frombuffer(drawn, np.uint8).copy()
    parts = max(1, len(given) // _SORTED)
    for part in range(parts):
        at = np.flatnonzero(given % parts == part)
        _, first, same = np.unique(given[at], return_index=True, return_inverse=True)
        found[at] = found[at[first]][same]
    return bytearray(found.tobytes())


def length_for(share: float, kept: int, too_long: Mapping[str, int]) -> int:
    """Return the length, rounded up, with which a share of the rows would be kept, those of `too_long` among them."""
    left = math.ceil(share * (kept + sum(too_long.values()))) - kept
    for length in sorted(map(int, too_long)):
        left -= too_long[str(length)]
        if left <= 0:
            break
    return length


def chosen(items: Sequence[Any], wanted: Iterable[int]) -> Sequence[Any]:
    """Return the items of a sequence at some positions."""
    return items.select(wanted) if isinstance(items, kept.Kept) else [items[number] for number in wanted]


def sample(rows: Sequence[Row], most: int, seed: int) -> tuple[Iterator[str], str]:
    """Return the texts of rows, of at most about `most` characters in all, drawn by seed; and in words which they are."""
    size = 0
    for row in rows:
        size += len(row["text"])
    if size <= most:
        return (row["text"] for row in rows), counted(len(rows), "row")
    rng, share = random.Random(f"{seed}/sample"), most / size
    texts = (row["text"] for row in rows if rng.random() < share)
    return texts, f"a sample of {share:.1%} of the {counted(len(rows), 'row')}, about {most:,} of {size:,} characters"


def write(folder: Path, type: str, rows: Mapping[str, Iterable[Row]]) -> Counter[str]:
    """Write the rows of a node, by split, as the files that a child reads; return how many were dropped for which reason.

    The same rows give the same bytes. Rows that their type can't use are not written.
    """
    dropped: Counter[str] = Counter()
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        part = Rows()
        part.clean(rows.get(split, ()), type)
        save(folder / f"{split}.parquet", part.kept)
        dropped += part.dropped
    return dropped


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as parquet, one column for each key; a row that lacks a column has a null there.

    Rows are read twice, in parts: for the columns that they have together, and to be written.
    """
    import pyarrow
    import pyarrow.parquet

    schemas = [_table(part).schema for part in _parts(rows)]
    schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in _parts(rows):
            writer.write_table(_table(part, schema))


def _parts(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield rows in lists of at most so many rows and about so many characters; an empty list where there is none."""
    held: list[Row] = []
    size = 0
    for row in rows:
        held.append(row)
        size += characters(row)
        if len(held) == _PART or size >= _CHARACTERS:
            yield held
            held, size = [], 0
    if held or not len(rows):
        yield held


def characters(row: Row) -> int:
    """Return about how many characters a row has."""
    return len(row["text"]) if row.keys() == {"text"} else len(str(row))


def _table(rows: Sequence[Row], schema: pyarrow.Schema | None = None) -> pyarrow.Table:
    import pyarrow

    columns = schema.names if schema else dict.fromkeys(key for row in rows for key in row)
    return pyarrow.table({key: [row.get(key) for row in rows] for key in columns}, schema)


def read(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that `save` wrote."""
    yield from map(_without_nulls, parquet.rows(path))


def count(path: Path) -> int:
    """Return how many rows a file holds, without reading them."""
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)


def _without_nulls(value: Any) -> Any:
    """Return a value without the keys that parquet filled with null, since others beside it have them."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value

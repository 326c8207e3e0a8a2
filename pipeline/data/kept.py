"""Rows on disk, read as if they were a list: Arrow record batches that are mapped into memory, never loaded as a whole.

A row that is nothing but a text is stored as that text, any other as JSON, so that it comes back as it was. Whoever passes
over all of them need not say how far it is: a pass that takes long says so by itself.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pipeline.data.types import Row
from pipeline.system import cache, process

if TYPE_CHECKING:
    import pyarrow as pa

Item = TypeVar("Item")
_BYTES, _ROWS = 4_000_000, 10_000  # of a record batch, at most, save for a single longer row
_SPAN_BYTES, _SPAN_ROWS = 1_000_000, 1000  # of rows that are worked on at once


class Kept(Sequence[Item]):
    """A sequence of items decoded from record batches, all of them or those of an index."""

    def __init__(
        self, batches: Sequence[pa.RecordBatch], decode: Callable[[pa.RecordBatch], list[Item]], index: array[int] | None = None,
        name: str = "",
    ) -> None:  # fmt: skip
        """`name`: of the recipe, under which a pass over all items says how far it is; empty for none."""
        self._batches, self._decode, self._index, self._name = batches, decode, index, name
        self._starts = list(accumulate((batch.num_rows for batch in batches), initial=0))

    def __len__(self) -> int:
        return self._starts[-1] if self._index is None else len(self._index)

    @overload
    def __getitem__(self, position: int) -> Item: ...
    @overload
    def __getitem__(self, position: slice) -> list[Item]: ...
    def __getitem__(self, position: int | slice) -> Item | list[Item]:
        if isinstance(position, slice):
            start, stop, step = position.indices(len(self))
            if step == 1 and self._index is None:
                return list(self._between(start, stop))
            return [self[number] for number in range(start, stop, step)]
        number = range(len(self))[position]
        number = number if self._index is None else self._index[number]
        batch = bisect_right(self._starts, number) - 1
        return self._decode(self._batches[batch].slice(number - self._starts[batch], 1))[0]

    def __iter__(self) -> Iterator[Item]:
        found = self._between(0, len(self)) if self._index is None else (self[number] for number in range(len(self)))
        if not self._name:
            return found
        return process.reading(self._name).along(found, lambda number: f"{number:,} of {len(self):,} rows read")

    def _between(self, start: int, stop: int) -> Iterator[Item]:
        first = bisect_right(self._starts, start) - 1
        for batch, begin in zip(self._batches[first:], self._starts[first:-1], strict=True):
            if begin >= stop:
                return
            skipped = max(0, start - begin)
            yield from self._decode(batch.slice(skipped, stop - begin - skipped))

    def spans(self, start: int) -> Iterator[range]:
        """Yield the positions from `start` on, in ranges, by the mean size of the items of a record batch."""
        if self._index is not None:
            size = sum(batch.nbytes for batch in self._batches) // max(1, self._starts[-1])
            yield from _cut(start, len(self), _rows_of(size))
            return
        for batch, begin, end in zip(self._batches, self._starts, self._starts[1:], strict=False):
            if end > start:
                yield from _cut(max(start, begin), end, _rows_of(batch.nbytes // batch.num_rows))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self[:3]}{'...' if len(self) > 3 else ''})"

    def select(self, wanted: Iterable[int]) -> Kept[Item]:
        """Return the items at some positions."""
        index = wanted if self._index is None else (self._index[number] for number in wanted)
        return Kept(self._batches, self._decode, array("q", index), self._name)


def _rows_of(size: int) -> int:
    """Return how many rows of so many bytes are worked on at once."""
    return max(1, min(_SPAN_ROWS, _SPAN_BYTES // max(1, size)))


def spans(items: Sequence[Any], start: int = 0) -> Iterator[range]:
    """Yield the positions of items from `start` on, in ranges of at most a thousand items and of about a megabyte."""
    yield from items.spans(start) if isinstance(items, Kept) else _cut(start, len(items), _SPAN_ROWS)


def _cut(start: int, stop: int, most: int) -> Iterator[range]:
    yield from (range(first, min(first + most, stop)) for first in range(start, stop, most))


class Writer:
    """Writes rows, each with where it comes from, to a file that `load` reads."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._schema = pa.schema({"text": pa.string(), "row": pa.string(), "origin": pa.string()})
        self._path, self._file = path, pa.ipc.new_file(str(path), self._schema)
        self._columns: tuple[list[str | None], list[str | None], list[str]] = ([], [], [])
        self._bytes = 0
        self.rows = self.characters = 0

    def add(self, row: Row, origin: str) -> None:
        """Write one row."""
        texts, others, origins = self._columns
        plain = row.keys() == {"text"}
        stored = _storable(row["text"]) if plain else None
        if stored is None:
            other = json.dumps(row, ensure_ascii=False)
            other = other if _storable(other) is not None else json.dumps(row)
        texts.append(stored)
        others.append(None if stored is not None else other)
        origins.append(origin)
        size = len(stored if stored is not None else other)
        self.rows, self.characters, self._bytes = self.rows + 1, self.characters + size, self._bytes + size
        if self._bytes >= _BYTES or len(texts) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._columns[0]:
            self._file.write_batch(pa.record_batch([pa.array(column, pa.string()) for column in self._columns], self._schema))
            for column in self._columns:
                column.clear()
            self._bytes = 0

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._file.close()


def _storable(text: str) -> str | None:
    """Return a text that UTF-8 can hold, and None for one with half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def load(path: Path, name: str = "") -> tuple[Kept[Row], Kept[str]]:
    """Return the rows of a file and where they come from; `name`: of their recipe."""
    import pyarrow as pa

    source = pa.ipc.open_file(pa.memory_map(str(path)))
    batches = [source.get_batch(number) for number in range(source.num_record_batches)]
    return Kept(batches, _rows, name=name), Kept(batches, _origins)


def _rows(batch: Any) -> list[Row]:
    both = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
    return [{"text": text} if other is None else json.loads(other) for text, other in both]


def _origins(batch: Any) -> list[str]:
    return list(batch.column(2).to_pylist())


def spooled(write: Callable[[Writer], None], name: str = "") -> tuple[Kept[Row], Kept[str]]:
    """Return rows that `write` adds to a file without a name, which goes with the last who reads it."""
    handle, made = tempfile.mkstemp(dir=cache.folder())
    os.close(handle)
    try:
        writer = Writer(Path(made))
        write(writer)
        writer.close()
        return load(Path(made), name)
    finally:
        Path(made).unlink(missing_ok=True)

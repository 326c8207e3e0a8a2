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
_BYTES, _ROWS = 4_000_000, 10_000  # of a record batch, from which on the next one begins
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream
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


class Columns:
    """Rows, each with where it comes from, on their way into a record batch."""

    def __init__(self) -> None:
        self._columns: tuple[list[str | None], list[str | None], list[str]] = ([], [], [])
        self.size = 0  # characters

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._columns[0])

    def add(self, row: Row, origin: str) -> None:
        """Take in one row."""
        texts, others, origins = self._columns
        stored = _storable(row["text"]) if row.keys() == {"text"} else None
        other = None
        if stored is None:
            other = json.dumps(row, ensure_ascii=False)
            other = other if _storable(other) is not None else json.dumps(row)
        texts.append(stored)
        others.append(other)
        origins.append(origin)
        self.size += len(stored or other or "")

    def batch(self) -> pa.RecordBatch:
        """Return the rows."""
        import pyarrow as pa

        return pa.record_batch([pa.array(column, pa.string()) for column in self._columns], _schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema({"text": pa.string(), "row": pa.string(), "origin": pa.string()})


class Log:
    """Bytes that are added to a file; it goes on, after a kill, behind those that were written when that was last asked."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Begin a file, or go on with one behind its first `size` bytes."""
        self._file = path.open("r+b" if size else "w+b")
        self._file.truncate(size)
        self._file.seek(size)
        self._path, self._size = path, size

    def known(self) -> bytes:
        """Return the bytes that it began with."""
        with self._path.open("rb") as file:
            return file.read(self._size)

    def add(self, more: bytes) -> None:
        """Add bytes."""
        self._file.write(more)

    def written(self) -> int:
        """Return how many bytes there are, once they lie on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class Writer:
    """Writes rows, each with where it comes from, to a file that `load` reads."""

    def __init__(self, path: Path, size: int = 0, rows: int = 0) -> None:
        """Begin a file, or go on with one that had so many bytes and rows when they were last asked for."""
        self._file, self._rows = Log(path, size), rows
        self._columns, self._held, self._bytes = Columns(), list[Any](), 0
        if not size:
            self._file.add(_schema().serialize().to_pybytes())

    @property
    def rows(self) -> int:
        """How many rows were written so far."""
        return self._rows + len(self._columns)

    def add(self, row: Row, origin: str) -> None:
        """Write one row."""
        self._columns.add(row, origin)
        if self._columns.size >= _SPAN_BYTES or len(self._columns) >= _ROWS:
            self._gather()

    def _gather(self) -> None:
        if len(self._columns):
            found, self._columns = self._columns.batch(), Columns()
            self.append(found)

    def append(self, rows: pa.RecordBatch) -> None:
        """Write rows that `Columns` gave."""
        if rows.num_rows:
            self._held.append(rows)
            self._rows, self._bytes = self._rows + rows.num_rows, self._bytes + rows.nbytes
        if self._bytes >= _BYTES or sum(batch.num_rows for batch in self._held) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._held:
            for batch in pa.Table.from_batches(self._held).combine_chunks().to_batches():
                self._file.add(batch.serialize())
            self._held, self._bytes = [], 0

    def written(self) -> tuple[int, int]:
        """Return the bytes and rows so far, once they lie on the disk."""
        self._gather()
        self._flush()
        return self._file.written(), self._rows

    def close(self) -> None:
        """Finish the file."""
        self._gather()
        self._flush()
        self._file.add(_END)
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

    batches = list(pa.ipc.open_stream(pa.memory_map(str(path))))
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

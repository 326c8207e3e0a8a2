"""Rows of a Parquet file, some at a time, so that memory grows neither with the file nor with its row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet

_ROWS, BYTES = 1000, 1 << 20  # of a batch, at most, by the mean size of a row; bytes also of a column that are read at once


def opened(file: Path | IO[bytes], buffer: int = BYTES) -> pyarrow.parquet.ParquetFile:
    """Open a file, of whose columns so many bytes are read at once; OSError or ArrowInvalid where it is no Parquet."""
    import pyarrow.parquet

    # Without a buffer a column is read for a whole row group, and with `pre_buffer`, pyarrow's default, for the whole file.
    return pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=buffer)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Return the rows of a file; OSError or ArrowInvalid, at once, where it is no Parquet."""
    return (row for batch in batches(path) for row in batch.to_pylist())


def batches(path: Path, begin: int = 0) -> Iterator[pa.RecordBatch]:
    """Return the rows of a file from a row on, which begins one of its batches, in batches; fails as `rows` does."""
    table = opened(path)
    return _between(table, range(table.metadata.num_row_groups), begin)


def _between(table: pyarrow.parquet.ParquetFile, groups: Sequence[int], skip: int) -> Iterator[pa.RecordBatch]:
    for group in groups:
        number = table.metadata.row_group(group).num_rows
        if skip < number:
            for batch in of_group(table, group):
                if skip:
                    skip -= batch.num_rows
                else:
                    yield batch
        else:
            skip -= number


def of_group(table: pyarrow.parquet.ParquetFile, group: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group; without threads, which a forked worker would wait for."""
    found = table.metadata.row_group(group)
    size = max(1, min(_ROWS, BYTES * found.num_rows // max(1, found.total_byte_size)))
    yield from table.iter_batches(size, row_groups=[group], use_threads=False)

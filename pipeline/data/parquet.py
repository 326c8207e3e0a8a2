"""Rows of a Parquet file, some at a time, so that memory grows neither with the file nor with its row groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROWS, _BYTES = 1000, 1 << 20  # that are decoded, and of a column that are read, at once


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Return the rows of a file; OSError or ArrowInvalid, at once, where it is no Parquet."""
    import pyarrow.parquet

    # Without a buffer a column is read for a whole row group, and with `pre_buffer`, pyarrow's default, for the whole file.
    file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BYTES)
    return (row for batch in file.iter_batches(_ROWS, use_threads=False) for row in batch.to_pylist())

"""Encoded rows as Arrow tables: written to files that are memory-mapped, or held in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.tokens import batched

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_ROWS = 1000  # whose lengths are read at once


def write(tokens: Iterable[dict[str, Any]], path: Path) -> Dataset:
    """Write token rows to an Arrow file, in batches, and open it as a data set that lies on disk."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    write_tables(tables(tokens), path)
    return datasets.Dataset.from_file(str(path))


def tables(tokens: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    """Yield token rows in tables, whose columns are those of the first row."""
    rows = iter(tokens)
    if first := next(rows, None):
        schema = _features(first).arrow_schema
        for batch in batched(itertools.chain([first], rows), _length):
            yield _table(batch, schema)


def write_tables(tables: Iterator[pa.Table], path: Path) -> int:
    """Write tables to an Arrow file with the columns of the first, each as a record batch; return how many rows they have."""
    import pyarrow as pa

    first, number = next(tables, _table([], _features(None).arrow_schema)), 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema) as stream:
        for table in itertools.chain([first], tables):
            stream.write_table(table.cast(first.schema).combine_chunks())
            number += len(table)
    return number


def table(tokens: Iterable[dict[str, Any]]) -> Dataset:
    """Return token rows as a data set in memory; for as many as a chunk of a stream has."""
    import datasets

    rows = list(tokens)
    return datasets.Dataset(_table(rows, _features(rows[0] if rows else None).arrow_schema))


def pair_lengths(dataset: Dataset) -> np.ndarray:
    """Return `pair_length` of each row; (rows,) int64, without a Python object for any of them."""
    columns = [name for name in dataset.column_names if name.endswith("_ids")]
    arrow, found = dataset.select_columns(columns).with_format("arrow"), []
    for start in range(0, len(dataset), _ROWS):
        table = arrow[start : start + _ROWS]
        lengths = {name: table[name].combine_chunks().value_lengths().to_numpy() for name in columns}
        prompt = lengths.pop("prompt_ids")
        found.append(prompt + np.maximum.reduce(list(lengths.values())))
    return np.concatenate(found).astype(np.int64)


def numbered(dataset: Dataset) -> Dataset:
    """Return the examples with a number each, so that what is drawn for one depends on nothing else."""
    return dataset.add_column("example", np.arange(len(dataset)))


def _features(first: Mapping[str, Any] | None) -> Any:
    """Return the columns of token rows by the first of them."""
    import datasets

    kinds = {int: datasets.Value("int32"), float: datasets.Value("float32"), bytes: datasets.Value("binary")}

    def kind(value: Any) -> Any:
        numbers = float if np.asarray(value).dtype.kind == "f" and len(value) else int  # an empty list is one of ids
        return datasets.List(kinds[numbers])

    found = first or {"input_ids": []}
    return datasets.Features({key: kinds.get(type(value)) or kind(value) for key, value in found.items()})


def _table(rows: Sequence[Mapping[str, Any]], schema: Any) -> pa.Table:
    import pyarrow as pa

    # Given the type at once, pyarrow cuts fractions to whole numbers without a word; a cast raises.
    columns = [pa.array([row[name] for row in rows]).cast(schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


def _length(row: Mapping[str, Any]) -> int:
    return sum(len(value) for value in row.values() if not isinstance(value, (int, float)))

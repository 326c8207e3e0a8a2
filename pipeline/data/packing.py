"""Documents → rows that hold several of them, by best fit, so that little of a batch is padding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.token_tables import write_tables
from pipeline.system import cache
from pipeline.system.process import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_DOCUMENTS = 1000  # that are packed together


def pack(dataset: Dataset, max_length: int, say: Callable[[str], Any] = str) -> Dataset:
    """Pack documents into rows of at most `max_length` tokens by best fit among a thousand of them.

    `seq_lengths` tells the documents of a row apart, `row` says which row of the recipe each was made from. The result
    lies beside the file of the data set, if it has one, and is made once.
    """
    import datasets
    import pyarrow as pa

    if not dataset.cache_files:
        return datasets.Dataset(pa.concat_tables(_packed(dataset, max_length, say)))
    path = Path(dataset.cache_files[0]["filename"]).with_name(f"packed-{max_length}{_selected(dataset)}.arrow")
    cache.once(path, lambda partial: write_tables(_packed(dataset, max_length, say), partial))
    return datasets.Dataset.from_file(str(path))


def _selected(dataset: Dataset) -> str:
    """Return what tells a selection of examples from another; empty where it is all of them."""
    chosen = dataset._indices
    return f"-{hashlib.sha256(chosen.column(0).to_numpy().tobytes()).hexdigest()[:16]}" if chosen is not None else ""


def _packed(dataset: Dataset, max_length: int, say: Callable[[str], Any]) -> Iterator[pa.Table]:
    """Yield tables of packed rows, each made from a thousand documents."""
    import datasets
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    arrow, progress = dataset.with_format("arrow"), Progress(say)
    for start in range(0, len(dataset), _DOCUMENTS):
        progress.tell(lambda: f"packs: {start:,} of {len(dataset):,} pieces of text")  # noqa: B023
        table = arrow[start : start + _DOCUMENTS]
        table = table.take(pa.array(np.arange(len(table))))  # a slice keeps the offsets that it has in the whole
        lengths = table["input_ids"].combine_chunks().value_lengths().to_numpy()
        # The number of a document is repeated for each of its tokens, since packing cuts all columns alike.
        spread = _with_rows(table, np.repeat(table["row"].to_numpy(), lengths), lengths)
        packed = pack_dataset(datasets.Dataset(spread), max_length, strategy="bfd").with_format("arrow")[:]
        lengths = packed["seq_lengths"].combine_chunks()
        tokens, numbers = lengths.flatten().to_numpy(), packed["row"].combine_chunks().flatten().to_numpy()
        yield _with_rows(packed, numbers[np.cumsum(tokens) - tokens], lengths.value_lengths().to_numpy())


def _with_rows(table: pa.Table, numbers: np.ndarray, lengths: np.ndarray) -> pa.Table:
    """Return the table with lists of row numbers, of the given lengths, in the column `row`."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers, pa.int32()))
    return table.set_column(table.schema.get_field_index("row"), "row", rows)

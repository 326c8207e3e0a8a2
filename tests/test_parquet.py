"""A Parquet file is read some rows at a time, whatever its row groups."""

import os
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.data import parquet, ranges
from pipeline.data.documents import Documents
from pipeline.data.sources import Faults


@pytest.mark.parametrize("group", [1_000, 100_000])
def test_reading_holds_neither_the_file_nor_a_row_group(tmp_path, group):
    path = tmp_path / "rows.parquet"
    texts = [os.urandom(1_000).hex() for _ in range(20_000)]  # 40 MB, which no encoding makes much smaller
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=group, use_dictionary=False)
    before = pyarrow.total_allocated_bytes()
    held, found = 0, 0
    for text, row in zip(texts, parquet.rows(path), strict=True):
        assert row == {"text": text}
        held, found = max(held, pyarrow.total_allocated_bytes() - before), found + 1
    assert found == len(texts)
    assert held < 10_000_000


def test_a_streamed_row_group_is_not_held(tmp_path):
    path = tmp_path / "rows.parquet"
    texts = [os.urandom(1_000).hex() for _ in range(20_000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, use_dictionary=False, compression="none")
    file = ranges.File.on_disk(path)
    (part,) = ranges.parts(file, 1)
    before = pyarrow.total_allocated_bytes()
    held = 0
    tracemalloc.start()  # which sees what Python's file reads, as arrow's count sees what is decoded
    for text, (_, row) in zip(texts[70:], ranges.read(file, *part, 70, Documents(), Faults()), strict=True):
        assert row == {"text": text}
        held = max(held, pyarrow.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held + peak < 12_000_000


def test_reading_goes_on_at_any_batch(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"number": list(range(5_000))}), path, row_group_size=1_700)
    whole = [batch.to_pylist() for batch in parquet.batches(path)]
    assert [row["number"] for batch in whole for row in batch] == list(range(5_000))
    begins = [batch[0]["number"] for batch in whole]
    assert len(begins) == 6
    for number, begin in enumerate([*begins, 5_000]):
        assert [batch.to_pylist() for batch in parquet.batches(path, begin)] == whole[number:]

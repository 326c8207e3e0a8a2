"""A Parquet file is read some rows at a time, whatever its row groups."""

import os

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.data import parquet


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

import numpy as np
import pytest

from pipeline.data import token_tables, tokens


def test_lengths_of_pairs_are_those_of_each(tmp_path):
    rows = [
        {"prompt_ids": [1] * (n % 5), "chosen_ids": [2] * (n % 7), "rejected_ids": [3] * (n % 3), "row": n} for n in range(2500)
    ]
    dataset = token_tables.write(rows, tmp_path / "a.arrow").select(range(2499, -1, -1))
    assert token_tables.pair_lengths(dataset).tolist() == [tokens.pair_length(row) for row in rows[::-1]]


def test_numbers_with_fractions_are_kept_as_they_are(tmp_path):
    rows = [
        {"values": [0.5, 2.25], "ids": [1, 2], "weight": 0.5},
        {"values": np.array([-1.75], np.float32), "ids": [3], "weight": 1.0},
    ]
    found = token_tables.write(rows, tmp_path / "rows.arrow")
    assert [found[0]["values"], found[1]["values"]] == [[0.5, 2.25], [-1.75]]
    assert [found[0]["ids"], found[1]["ids"]] == [[1, 2], [3]]
    with pytest.raises(ValueError, match="truncated"):
        token_tables.write([{"values": [1, 2]}, {"values": [1.5]}], tmp_path / "mixed.arrow")

from itertools import chain

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.data.batches import CausalCollator, pad

_ = -100


def test_packed_batch_by_hand():
    """Two documents in the first row, one in the second, which is padded: positions begin again, padding apart."""
    rows = [
        {"input_ids": [7, 8, 9, 5, 6], "labels": [_, 8, 9, _, 6], "seq_lengths": [3, 2]},
        {"input_ids": [4, 3, 2], "labels": [_, 3, 2], "seq_lengths": [3]},
    ]
    batch = CausalCollator(pad_id=1)(rows)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[7, 8, 9, 5, 6], [4, 3, 2, 1, 1]],
        "labels": [[_, 8, 9, _, 6], [_, 3, 2, _, _]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]],
    }


def test_unpacked_batch_by_hand():
    rows = [{"input_ids": [7, 8, 9], "labels": [_, 8, 9]}, {"input_ids": [4, 3], "labels": [_, 3]}]
    batch = CausalCollator(pad_id=1)(rows)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[7, 8, 9], [4, 3, 1]],
        "labels": [[_, 8, 9], [_, 3, _]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
    }


def test_padding_by_hand():
    """Whatever a column holds: ids get the padding token, labels -100, segments 0, and numbers stay numbers."""
    rows = [
        {"input_ids": [7, 8, 9], "labels": [_, 8, 9], "token_type_ids": [0, 1, 1], "pair": 1},
        {"input_ids": [4], "labels": [_], "token_type_ids": [0], "pair": 0},
    ]
    assert {key: value.tolist() for key, value in pad(rows, 1).items()} == {
        "input_ids": [[7, 8, 9], [4, 1, 1]],
        "labels": [[_, 8, 9], [_, _, _]],
        "token_type_ids": [[0, 1, 1], [0, 0, 0]],
        "pair": [1, 0],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )


def test_packed_equals_unpacked():
    """The same documents give the same loss in one packed row as each in a row of its own."""
    model = llama().eval()
    documents = [[3, 9, 4, 1], [5, 6, 7], [2, 8, 10, 11, 12]]
    rows = [{"input_ids": ids, "labels": [_, *ids[1:]]} for ids in documents]
    packed = {"input_ids": [*chain(*documents)], "labels": [*chain(*(row["labels"] for row in rows))], "seq_lengths": [4, 3, 5]}
    apart, together = CausalCollator(0)(rows), CausalCollator(0)([packed])
    with torch.no_grad():
        losses = [model(**batch, use_cache=False).loss.item() for batch in (apart, together)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    together.pop("position_ids")  # what would happen without them
    with torch.no_grad():
        assert abs(model(**together, use_cache=False).loss.item() - losses[0]) > 1e-3

"""Pairs that are read as one row: the row by hand, and each architecture beside trl's own scores."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from pipeline.training import scoring

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
         "intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip


def test_a_joined_row_by_hand():
    ids = torch.tensor([[5, 6, 7, 8], [5, 4, 0, 0], [5, 6, 9, 0], [3, 4, 9, 8]])
    found = scoring.join(ids, (ids > 0).long())
    assert found.columns["input_ids"][0].tolist()[:5] == [5, 6, 7, 8, 9]
    assert found.columns["position_ids"][0].tolist()[:5] == [0, 1, 2, 3, 2]
    assert found.columns["input_ids"][1].tolist() == [5, 4, 3, 4, 9, 8]  # sides that share nothing
    assert found.columns["position_ids"][1].tolist() == [0, 1, 0, 1, 2, 3]
    first, second = found.columns["attention_mask"][:, 0].int()
    assert first[:5, :5].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second side does not see the first one's own tokens
    ]
    assert second[2:].tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    places = found.places.tolist()
    assert places[0] == [0, 1, 2, 3]
    assert places[2][:3] == [0, 1, 4]
    assert places[1][:2] == [6, 7]
    assert places[3] == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("architecture", "more", "joins"),
    [
        ("llama", {}, True),
        ("llama", {"attn_implementation": "eager"}, True),
        ("qwen3", {"head_dim": 16}, True),
        ("gpt2", {"n_positions": 64}, True),
        ("gpt_neox", {}, True),
        ("mistral", {"sliding_window": 4}, False),
        ("gemma3_text", {"head_dim": 16, "sliding_window": 4}, False),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48}, True),
        ("bloom", {"n_head": 2}, False),
        ("mamba", {}, False),
    ],
)
def test_an_architecture_gets_trls_scores_joined_or_not(architecture, more, joins):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **SIZES | more)).eval()
    for weights in model.parameters():
        if weights.dim() == 2:
            torch.nn.init.normal_(weights, std=0.2)
    stock = copy.deepcopy(model)
    add_fused_lm_head(stock)
    add_fused_lm_head(model)
    state = {"joins": False}
    scoring.score_answers_alone(model, lambda: state["joins"])
    ids = torch.randint(3, 60, (8, 20))
    ids[4:, :9] = ids[:4, :9]  # what two sides share
    lengths = torch.tensor([20, 15, 17, 12, 13, 18, 20, 16])
    mask = (torch.arange(20) < lengths[:, None]).long()
    ids[mask == 0] = 0
    labels = ids.masked_fill((mask == 0) | (torch.arange(20) < 6), -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "fused_lm_head": True, "use_cache": False}

    def scores():
        with torch.no_grad():
            return model(**batch).log_probs

    def joined():
        state["joins"] = True
        return scores()

    state["joins"] = scoring.sees_all(model) and scoring.agree(scores(), joined)
    assert state["joins"] is joins
    with torch.no_grad():
        expected, found = stock(**batch), model(**batch)
    assert float((found.log_probs - expected.log_probs).abs().max()) < 1e-4
    assert bool((found.label_mask == expected.label_mask).all())

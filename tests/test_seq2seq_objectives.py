"""Span corruption and denoising: what the encoder reads, and what the decoder has to write."""

import numpy as np
import pytest
import torch

from pipeline import objectives
from pipeline.data.batches import pad
from pipeline.models import tokenization
from pipeline.models.logits import IGNORED
from pipeline.objectives._documents import spans
from tests.objectives import ROWS, Scripted, shown, text_of

_ = IGNORED


def test_span_corruption_by_hand(tokenizers):
    words = tokenizers["characters"]
    one, two, three = tokenization.sentinels(words)[:3]
    end = words.eos_token_id
    text = {"input_ids": [110, 111, 112, 113, 114, 115, 116, 117, 118, 119]}
    # four of ten hidden in two spans: the four are cut after 1, the six after 2
    found = objectives.load("span_corruption", {"noise_share": 0.4, "mean_span": 2.0}).corrupt(text, words, Scripted([0], [1]))
    assert shown(found, "input_ids", "labels") == {
        "input_ids": [110, 111, one, 113, 114, 115, 116, two, end],
        "labels": [one, 112, two, 117, 118, 119, three, end],
    }


@pytest.mark.parametrize(("name", "architecture"), [("span_corruption", "t5"), ("denoising", "bart")])
def test_a_decoder_reads_its_targets_and_makes_no_loss_of_its_own(tokenizers, name, architecture):
    objective = objectives.load(name)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 16}
    model = objective.build_model(tokenizers[objective.tokenizer_type], architecture, **sizes).eval()
    batch = pad([{"input_ids": [5, 6, 7], "labels": [8, 9]}, {"input_ids": [5, 6], "labels": [9, 8, 7]}], 0)
    expected, made = model(**batch), []
    model.register_forward_hook(lambda *called: made.append(called[-1]))
    loss = objective.losses(model, batch)["loss"]
    assert loss.item() == pytest.approx(expected.loss.item() * 5, rel=1e-5)
    assert torch.equal(made[0].logits, expected.logits)
    assert made[0].loss is None


def test_a_decoder_that_shifts_its_targets_only_inside_reads_them_too(tokenizers):
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    from pipeline.models.logits import decoder_logits

    config = M2M100Config(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
                          decoder_attention_heads=4, encoder_ffn_dim=16, decoder_ffn_dim=16)  # fmt: skip
    model = M2M100ForConditionalGeneration(config).eval()
    batch = pad([{"input_ids": [5, 6, 7], "labels": [8, 9]}], 0)
    assert torch.equal(decoder_logits(model, batch), model(**batch).logits)


def test_what_can_be_copied_is_no_scorable_target():
    batch = pad([{"input_ids": [2, 4, 31, 32, 3], "labels": [_, 30, 31, 33, _]}], 0)
    for name in ("mlm", "mlm_nsp", "mlm_sop", "rtd"):
        assert objectives.load(name).scorable_targets(batch)["labels"].tolist() == [[_, 30, _, 33, _]]
    assert batch["labels"].tolist() == [[_, 30, 31, 33, _]]  # training asks for them


@pytest.mark.parametrize("length", [2, 3, 7, 50, 511])
def test_spans_cover_their_share_and_never_touch(length):
    for seed in range(20):
        found = spans(length, 0.15, 3.0, np.random.default_rng(seed))
        assert sum(end - start for start, end in found) == max(1, round(length * 0.15))
        assert all(start > before for (start, _), before in zip(found, [0, *(end for _, end in found)], strict=False))
        assert found[-1][1] <= length


def test_denoising_by_hand(tokenizers):
    words = tokenizers["begun_characters"]
    mask, begin, end = words.mask_token_id, words.bos_token_id, words.eos_token_id
    text = {"input_ids": [110, 111, 112, 113, 114, 115, 116, 117, 118, 119], "ends": [4, 10]}
    # the second sentence first; spans of 2, 0 and (cut to what is left) 1; at gaps 1, 3 and 7 of the 7 that stay
    rng = Scripted([1, 0], 2, 0, 5, [1, 3, 7])
    found = objectives.load("denoising", {"noise_share": 0.4}).corrupt(text, words, rng)
    #   114 115 116 117 118 119 110 111 112 113, of which 115 116 and 113 are hidden, and nothing between 118 and 119
    assert shown(found, "input_ids", "labels") == {
        "input_ids": [begin, 114, mask, 117, 118, mask, 119, 110, 111, 112, mask, end],
        "labels": [begin, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119, end],
    }


def test_denoising_gives_back_what_it_does_not_hide(tokenizers):
    words, objective = tokenizers["begun_characters"], objectives.load("denoising", {"permute": False, "mean_span": 1.0})
    for seed, example in enumerate(objective.examples(text_of(words, max_length=50))):
        found = objective.corrupt(example, words, np.random.default_rng(seed))
        kept = [token for token in found["input_ids"] if token != words.mask_token_id]
        assert len(found["input_ids"]) <= len(found["labels"]) <= 50  # it never grows
        text = words.decode(found["labels"], skip_special_tokens=True)
        assert text.strip() in ROWS[example["row"]]["text"]
        assert words(text)["input_ids"][0] == found["labels"][0] == words.bos_token_id
        rest = iter(found["labels"])
        assert all(token in rest for token in kept)  # in their order
        assert 0.1 < 1 - len(kept) / len(found["labels"]) < 0.5

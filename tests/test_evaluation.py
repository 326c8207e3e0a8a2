import math

import evaluate
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline import ROOT
from pipeline.models import tokenizer as tokenizers
from pipeline.evaluation import intervals, models, table

METRICS = ROOT / "pipeline" / "evaluation" / "metrics"


def test_intervals_cover_what_they_should():
    """A 95% interval of a mean misses the truth about one time in twenty."""
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        found = intervals.ratio(list(generator.normal(1.0, 1.0, 100)), resamples=400, seed=seed)
        hits += found.low <= 1.0 <= found.high
    assert 0.90 < hits / 300 < 0.98


def test_a_ratio_is_weighted_and_pairs_are_drawn_together():
    assert intervals.ratio([2.0, 4.0], [1.0, 3.0]).value == 1.5
    scores = list(np.random.default_rng(0).normal(0, 10, 50))
    found = intervals.difference([score + 1 for score in scores], scores)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="2 items don't pair with 1"):
        intervals.difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no item"):
        intervals.ratio([])


@pytest.mark.parametrize(
    ("name", "predictions", "references", "more", "wanted"),
    [
        ("exact_match", ["A b. More.", " A b. ", "A"], ["A b.", "A b.", "A b."], {}, 2 / 3),
        ("win_rate", [2, 1, 0, 2], [1, 2, 0, 0], {}, 2.5 / 4),
        ("token_loss", [3.0, 1.0], [1.0, 3.0], {}, 1.0),
        ("token_loss", [math.log(2) * 8, math.log(2) * 8], [1.0, 3.0], {"unit": "byte"}, 4.0),
    ],
)
def test_metrics_load_by_the_evaluate_library_offline(name, predictions, references, more, wanted, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metric = evaluate.load(str(METRICS / f"{name}.py"))
    assert metric.compute(predictions=predictions, references=references, **more)[name] == pytest.approx(wanted)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    ).eval()


def test_nats_are_those_of_each_row_alone(model):
    rows = [{"input_ids": list(range(5, 5 + size)), "labels": [-100, *range(6, 5 + size)]} for size in (9, 3, 30, 7)]
    rows[2]["labels"][:20] = [-100] * 20
    found = models.nats(model, rows, pad_id=1)
    for row, nats, count in zip(rows, found, models.targets(rows), strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
        assert nats == pytest.approx(alone * count, rel=1e-4)


def test_replies_do_not_depend_on_their_neighbours(model):
    vocabulary = tokenizers.train(["x"], 260, 64)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [20]]
    greedy = models.replies(model, vocabulary, prompts, 8)
    assert greedy == [models.replies(model, vocabulary, [prompt], 8)[0] for prompt in prompts]
    assert models.replies(model, vocabulary, prompts, 8, seed=1) == models.replies(model, vocabulary, prompts, 8, seed=1)
    assert models.replies(model, vocabulary, prompts, 8, seed=1) != models.replies(model, vocabulary, prompts, 8, seed=2)


def test_the_table_shows_every_figure():
    figure = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    text = table.render({
        "stages": {"sft": {"exact_match": figure, "loss": figure}, "control": {"loss": figure}},
        "comparisons": [{"stage": "sft", "against": "control", "metric": "loss", **figure, "better": False}],
        "samples": [{"prompt": "Q", "answers": {"sft": "A"}}],
    })  # fmt: skip
    assert "50.0% [25.0, 75.0]" in text
    assert text.count("0.500 [0.250, 0.750]") == 2
    assert "not clearly better" in text

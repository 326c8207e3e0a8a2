"""What rows cost a parent: asked together, they cost what each costs alone."""

import random

import pytest
from transformers import AutoTokenizer

from pipeline.training import familiarity
from pipeline.training.parents import pretrained
from tests.objectives import ROWS


@pytest.mark.parametrize("kind", ["mlm", "rtd", "span_corruption", "denoising"])
def test_texts_cost_together_what_they_cost_alone(parents, monkeypatch, kind):
    family, model = pretrained(str(parents[kind]))
    tokenizer = AutoTokenizer.from_pretrained(parents[kind])
    rows = [{"input_ids": tokenizer(row["text"])["input_ids"]} for row in ROWS]
    ids = [one for one in range(len(tokenizer)) if one not in tokenizer.all_special_ids]
    cost = familiarity.cost_of(family, model, rows, tokenizer, ids)
    exchanges = [{}, dict(zip(ids, random.Random(1).sample(ids, len(ids)), strict=True))]
    together = [cost(exchange) for exchange in exchanges]
    monkeypatch.setattr(familiarity, "_AT_ONCE", 1)
    alone = [cost(exchange) for exchange in exchanges]
    assert together[0].tokens > 100
    assert together[0] != together[1]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert [one.all for one in together] == pytest.approx([one.all for one in alone], rel=1e-5)

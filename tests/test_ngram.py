"""An n-gram model with modified Kneser-Ney smoothing: probabilities by hand and by a slow reference, and what it is fit for."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from pipeline.evaluation.ngram import KneserNey, _discounts, spread


def reference(documents, vocabulary, order):
    """The formulas by dictionaries: p(token, context)."""
    raw = [Counter() for _ in range(order)]
    for one in documents:
        for at in range(1, len(one)):
            for length in range(min(order, at + 1)):
                raw[length][tuple(one[at - length : at + 1])] += 1
    counts = [raw[-1]]
    for length in range(order - 2, -1, -1):
        left = defaultdict(set)
        for gram in raw[length + 1]:
            left[gram[1:]].add(gram[0])
        first = documents[0][0]
        counts.insert(0, Counter({
            gram: raw[length][gram] if length and gram[0] == first else len(left[gram]) for gram in raw[length]
        }))  # fmt: skip
    less = [_discounts(np.array(list(one.values()))) for one in counts]

    def chance(token, context):
        own, taken = counts[len(context)], less[len(context)]
        lower = chance(token, context[1:]) if context else 1 / vocabulary
        after = [count for gram, count in own.items() if gram[:-1] == context]
        if not after:
            return lower
        count = own.get((*context, token), 0)
        backoff = sum(taken[min(one, 3)] for one in after) / sum(after)
        return (count - taken[min(count, 3)]) / sum(after) + backoff * lower

    return chance


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_formulas(order):
    draw = random.Random(0)
    documents = [[0, *(draw.choice([1, 2, 2, 3, 3, 3, 4, 5]) for _ in range(draw.randint(1, 12)))] for _ in range(60)]
    model, chance = KneserNey(documents, 7, order), reference(documents, 7, order)
    for _ in range(20):
        one = [0, *(draw.randrange(1, 7) for _ in range(9))]
        wanted = [-math.log(chance(one[at], tuple(one[max(0, at - order + 1) : at]))) for at in range(1, len(one))]
        assert model.nats(one) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("context", [[0], [0, 3, 2], [0, 6, 6], [0, 1, 2, 3, 4]])
def test_the_tokens_after_any_context_share_one(context):
    draw = random.Random(1)
    model = KneserNey([[0, *(draw.choice([1, 2, 3, 3, 4]) for _ in range(9))] for _ in range(30)], 7)
    assert sum(math.exp(-model.nats([*context, token])[-1]) for token in range(7)) == pytest.approx(1)


def test_it_learns_an_order_that_a_unigram_can_t():
    cycle = [0, *[1, 2, 3, 4] * 25]
    assert KneserNey([cycle] * 3, 5).nats(cycle).mean() < 0.1
    assert KneserNey([cycle] * 3, 5, 1).nats(cycle).mean() > 1.3


def test_rows_are_spread_over_all():
    assert list(spread(10, 5)) == [0, 2, 4, 6, 8]
    assert list(spread(3, 100)) == [0, 1, 2]
    assert list(spread(0, 5)) == []

"""How well a reward model tells the chosen from the rejected answer of held-out pairs, and whether its margins mean what they say.

Under Bradley and Terry's model, of which its loss is −log p, the chosen answer is preferred with probability
p = σ(reward of the chosen − reward of the rejected). Calibration asks how often it is right where it is so sure
(expected calibration error, Guo et al. 2017, eq. 3, over bins of equal width).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.data import sides
from pipeline.data.tokens import Tokens, pair_length
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, ratio_of, share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.metrics.win_rate import EVEN
from pipeline.evaluation.subject import StageModel, Subject

LONGER, SHORTER = "longer answer", "shorter answer"
_FEWEST = 10  # pairs of a bin that is shown: of fewer, an interval says nothing
BINS = ((50, 60), (60, 70), (70, 80), (80, 90), (90, 100))  # of a model's confidence, in per cent


class RewardAccuracy(Evaluator):
    """Measures a reward model and its controls against even chances and against the length of the answers."""

    reads, gives = "preference", ("reward",)
    metrics = (
        Metric("reward_accuracy", "share of held-out pairs in which the chosen answer gets the higher reward, ties counted half",
               "share", "more"),
        Metric("margin", "mean reward of the chosen answer minus that of the rejected one", "score", ""),
        Metric("pair_loss", "mean −log σ(margin) of held-out pairs, in nats; 0.693 where nothing is told apart", "nats", "less"),
        Metric("calibration_error", "mean distance between how sure the model is, σ(|margin|), and how often it is right then; "
                                    "weighted by the pairs in each of five bins", "share", "less"),
        *(Metric(f"right_at_{low}_{high}", f"share of the pairs that it gets right among those of which it is {low} to {high}% sure; "
                 "calibrated, it lies between the two", "share", "") for low, high in BINS),
    )  # fmt: skip

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield the figures of every reward model, and the accuracy of the baselines."""
        models = [model for model in subject.compared if model.family in self.gives]
        rows, encoded = _fitting(subject, models)
        if not rows:
            return
        for model, pairs in zip(models, encoded, strict=True):
            chosen, rejected = (model.rewards([sides.whole(pair, side) for pair in pairs]) for side in sides.SIDES)
            margins = np.array(chosen) - np.array(rejected)
            right = _right(margins)
            yield Measurement(model.label, "reward_accuracy", share(right))
            yield Measurement(model.label, "margin", share(margins.tolist()))
            yield Measurement(model.label, "pair_loss", share(np.logaddexp(0.0, -margins).tolist()))
            yield Measurement(model.label, "calibration_error", calibration(margins))
            bins = _bins(margins)
            for (low, high), inside in zip(BINS, bins.T, strict=True):
                if inside.sum() >= _FEWEST:
                    figure = ratio_of((inside * np.array(right)).tolist(), inside.astype(float).tolist())
                    yield Measurement(model.label, f"right_at_{low}_{high}", figure)
        longer = _right(np.array([_letters(row, "chosen") - _letters(row, "rejected") for row in rows]))
        yield Measurement(EVEN, "reward_accuracy", share([0.5] * len(rows)))
        yield Measurement(LONGER, "reward_accuracy", share(longer))
        yield Measurement(SHORTER, "reward_accuracy", share([1.0 - value for value in longer]))


def calibration(margins: np.ndarray) -> Figure:
    """Return the expected calibration error of margins as a figure: Σ over bins of |Σ (right − confidence)| / pairs."""
    sure = _confidence(margins)
    gaps = (np.array(_right(margins)) - sure)[:, None] * _bins(margins)
    items = np.concatenate([gaps, np.ones((len(margins), 1))], 1)
    return Figure(items, lambda sums: np.abs(sums[..., :-1]).sum(-1) / np.maximum(sums[..., -1], 1e-12))


def _confidence(margins: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.abs(margins))))


def _bins(margins: np.ndarray) -> np.ndarray:
    """Return which bin each pair belongs to, (pairs, bins) bool."""
    edges = np.array([high / 100 for _, high in BINS[:-1]])
    return np.asarray(np.digitize(_confidence(margins), edges)[:, None] == np.arange(len(BINS)))


def _right(margins: np.ndarray) -> list[float]:
    """Return 1 where the first side wins, 0 where the second does, and half for a tie."""
    return [float(value) for value in (np.sign(margins) + 1) / 2]


def _letters(row: Row, side: str) -> int:
    return sum(len(turn["content"]) for turn in row[side])


def _fitting(subject: Subject, models: Sequence[StageModel]) -> tuple[list[Row], list[list[Tokens]]]:
    """Return the rows that every model has positions for, and them as each model reads them; count the others."""
    rows = subject.rows
    encoded = [[sides.encode(row, model.tokenizer) for row in rows] for model in models]
    fits = [
        all(pair_length(pair) <= model.positions for model, pair in zip(models, pairs, strict=True))
        for pairs in zip(*encoded, strict=True)
    ]
    if not all(fits):
        subject.skipped["held-out pairs longer than a model has positions"] += fits.count(False)
        subject.describe([row for row, fit in zip(rows, fits, strict=True) if fit], "pairs")
    kept = [[pair for pair, fit in zip(pairs, fits, strict=True) if fit] for pairs in encoded]
    return [row for row, fit in zip(rows, fits, strict=True) if fit], kept


EVALUATOR = RewardAccuracy()

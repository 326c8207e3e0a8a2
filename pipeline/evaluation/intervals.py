"""Bootstrap intervals (Efron 1979) of figures that are made of sums over items, alone and as paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
FEW = 30  # items or groups below which a difference has no verdict: a percentile interval of so few is too narrow


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Figure:
    """A figure that is made of sums over items, such as F1 of counts."""

    items: np.ndarray  # (items, sums): what each item adds
    of: Callable[[np.ndarray], np.ndarray]  # (..., sums) → (...)

    def estimate(
        self, against: Figure | None = None, groups: Sequence[str] | None = None, resamples: int = 1000, seed: int = 0
    ) -> Estimate:
        """Return the figure, or its difference to a rival's over the same items, with a percentile interval.

        With `groups` (one an item) whole groups are drawn. Raises ValueError if there is no item, or the rival
        was not measured on the same ones.
        """
        if not len(self.items):
            raise ValueError("no item to estimate from")
        if against and len(against.items) != len(self.items):
            raise ValueError(f"{len(self.items)} items don't pair with {len(against.items)}")
        place = np.arange(len(self.items)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        size = int(place.max()) + 1
        counts = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=resamples)
        value, drawn = 0.0, np.zeros(resamples)
        for sign, figure in ((1, self), (-1, against)):
            if figure:
                sums = np.zeros((size, figure.items.shape[1]))
                np.add.at(sums, place, figure.items)
                value += sign * float(figure.of(sums.sum(0)))
                drawn += sign * figure.of(counts @ sums)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value, float(low), float(high), size)


def share(scores: Sequence[float], weights: Sequence[float] | None = None) -> Figure:
    """Return Σ scores / Σ weights as a figure; the mean where there are no weights."""
    return ratio_of(scores, [1.0] * len(scores) if weights is None else weights)


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Figure:
    """Return Σ above / Σ below as a figure, 0 where nothing is below."""
    return Figure(np.array([above, below], float).T, lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


def macro_f1(cells: np.ndarray) -> np.ndarray:
    """Return F1 averaged over the labels that are true of an item; (..., 3 · labels) counts: right, true, said → (...)."""
    right, true, said = np.moveaxis(cells.reshape(*cells.shape[:-1], 3, -1), -2, 0)
    f1 = 2 * right / np.maximum(true + said, 1e-12)
    there = true > 0
    return np.asarray((f1 * there).sum(-1) / np.maximum(there.sum(-1), 1))


def correlation(one: np.ndarray, two: np.ndarray) -> Figure:
    """Return Pearson's correlation as a figure; of ranks it is Spearman's, with the ranks of all items."""
    one, two = one - one.mean(), two - two.mean()

    def of(sums: np.ndarray) -> np.ndarray:
        n, a, b, aa, bb, ab = np.moveaxis(sums, -1, 0)
        spread = np.sqrt(np.maximum(aa - a * a / n, 0) * np.maximum(bb - b * b / n, 0))
        return np.asarray(np.where(spread > 1e-9, (ab - a * b / n) / np.maximum(spread, 1e-9), 0.0))

    return Figure(np.stack([np.ones(len(one)), one, two, one * one, two * two, one * two], -1), of)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks, (items,); equal values share their mean rank."""
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[position]


def root_mean(squares: np.ndarray) -> Figure:
    """Return the root of a mean as a figure; (items,) squares."""
    sums = np.stack([squares, np.ones(len(squares))], -1)
    return Figure(sums, lambda sums: np.sqrt(sums[..., 0] / np.maximum(sums[..., 1], 1e-12)))

"""Bootstrap intervals (Efron 1979) of ratios of sums, alone and paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


def _resampled(parts: Sequence[Sequence[float]], resamples: int, seed: int) -> np.ndarray:
    """Return sums of each part over resampled items, (resamples, parts); items are drawn together."""
    table = np.asarray(parts, dtype=np.float64).T  # (items, parts)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(table), np.full(len(table), 1 / len(table)), size=resamples)
    return np.asarray(counts @ table)


def ratio(scores: Sequence[float], weights: Sequence[float] | None = None, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Return Σ scores / Σ weights with a percentile interval over items; a mean where there are no weights.

    Raises ValueError if there is no item.
    """
    if not scores:
        raise ValueError("no item to estimate from")
    weights = [1.0] * len(scores) if weights is None else weights
    sums = _resampled([scores, weights], resamples, seed)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(np.sum(scores) / np.sum(weights)), float(low), float(high), len(scores))


def difference(
    scores: Sequence[float],
    others: Sequence[float],
    weights: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Return ratio(scores) − ratio(others) over the same items, drawn in pairs.

    Raises ValueError if the items don't pair up.
    """
    if len(scores) != len(others):
        raise ValueError(f"{len(scores)} items don't pair with {len(others)}")
    return ratio([a - b for a, b in zip(scores, others, strict=True)], weights, resamples, seed)

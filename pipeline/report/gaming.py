"""Rewards against KL: what a policy gained for its distance from its parent, and from where on it games a reward.

Gao, Schulman and Hilton 2023: a policy that is trained against a model of a preference raises that model's score on and on,
while what the model stands for rises, stands still and falls.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

KL, PREFIX = "kl_per_answer", "rewards/"
_WINDOWS = 10  # into which the points are cut, to be compared
_CLEAR = 4.0  # standard errors by which a window must lie below the best one, which was chosen for being high

Curves = dict[str, list[tuple[float, float]]]  # reward → (nats an answer, mean reward), in the order of training


def curves(entries: Sequence[Mapping[str, Any]]) -> Curves:
    """Return every reward of a log of sampled answers, against the KL to the parent; empty where the log has none."""
    found: Curves = {}
    for entry in entries:
        if KL not in entry:
            continue
        for key, value in entry.items():
            if key.startswith(PREFIX) and isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(key.removeprefix(PREFIX), []).append((float(entry[KL]), float(value)))
    return found


def told(found: Curves, weights: Mapping[str, float]) -> list[str]:
    """Return in words how each reward went, and the KL from which on one that was only watched (weight 0) is clearly lower."""
    said = []
    for name, points in found.items():
        windows = _windows(points)
        if len(windows) < 3:
            continue
        first, last = (_mean(window, 1) for window in (windows[0], windows[-1]))
        watched = weights.get(name) == 0
        text = f"{name}{', watched' if watched else ''}: {first:.3f} at first, {last:.3f} at {_mean(windows[-1], 0):.2f} nats"
        by_kl = _windows(sorted(points))
        best = max(range(len(by_kl)), key=lambda number: _mean(by_kl[number], 1))
        after = [window for window in by_kl[best + 1 :] if _falls(by_kl[best], window)] if watched else []
        if after:
            text += (
                f"; it is best, {_mean(by_kl[best], 1):.3f}, at {_mean(by_kl[best], 0):.2f} nats and clearly lower, "
                f"{_mean(after[0], 1):.3f}, at {_mean(after[0], 0):.2f} nats: what was learned from is gamed there"
            )
        said.append(text)
    return said


def _mean(window: Sequence[tuple[float, float]], part: int) -> float:
    return statistics.fmean(point[part] for point in window)


def _windows(points: Sequence[tuple[float, float]]) -> list[Sequence[tuple[float, float]]]:
    size = max(3, len(points) // _WINDOWS)
    return [points[start : start + size] for start in range(0, len(points) - size + 1, size)]


def _falls(best: Sequence[tuple[float, float]], last: Sequence[tuple[float, float]]) -> bool:
    """Say whether the mean of a window lies clearly below that of the best one."""
    before, after = ([value for _, value in window] for window in (best, last))
    error = math.sqrt(statistics.variance(before) / len(before) + statistics.variance(after) / len(after))
    fall = statistics.fmean(before) - statistics.fmean(after)
    return fall > 0 and fall > _CLEAR * error

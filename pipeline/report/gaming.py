"""Rewards against KL: what a policy gained in reward for how far it went from its parent, and from where on a reward was gamed.

Gao, Schulman and Hilton 2023: a policy that is trained against a model of a preference raises that model's score on and on,
while what the model stands for rises, stands still and falls.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

KL, PREFIX = "kl_per_answer", "rewards/"
_WINDOWS = 10  # into which the log is cut, to be compared
_CLEAR = 4.0  # standard errors by which the last window must lie below the best one, which was chosen for being high

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
    """Return in words how each reward went, and where one that was only watched (weight 0) turned down clearly."""
    said = []
    for name, points in found.items():
        windows = _windows(points)
        if len(windows) < 3:
            continue
        means = [statistics.fmean(value for _, value in window) for window in windows]
        best = max(range(len(windows)), key=means.__getitem__)
        where = statistics.fmean(kl for kl, _ in windows[best])
        last = statistics.fmean(kl for kl, _ in windows[-1])
        watched = weights.get(name) == 0
        text = f"{name}{', watched' if watched else ''}: {means[0]:.3f} at first, {means[-1]:.3f} at {last:.2f} nats"
        if watched and _falls(windows[best], windows[-1]):
            text += (
                f"; it was best, {means[best]:.3f}, at {where:.2f} nats and fell clearly after it: what was learned from is gamed "
                "from there on"
            )
        said.append(text)
    return said


def _windows(points: Sequence[tuple[float, float]]) -> list[Sequence[tuple[float, float]]]:
    size = max(3, len(points) // _WINDOWS)
    return [points[start : start + size] for start in range(0, len(points) - size + 1, size)]


def _falls(best: Sequence[tuple[float, float]], last: Sequence[tuple[float, float]]) -> bool:
    """Say whether the mean of the last window lies clearly below that of the best one."""
    before, after = ([value for _, value in window] for window in (best, last))
    error = math.sqrt(statistics.variance(before) / len(before) + statistics.variance(after) / len(after))
    fall = statistics.fmean(before) - statistics.fmean(after)
    return fall > 0 and fall > _CLEAR * error

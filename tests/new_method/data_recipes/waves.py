"""Waves of several lengths and heights, two of them in each series."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from pipeline.data.types import Row


def series(split: str, seed: int) -> Iterator[Row]:
    """Yield sums of two waves, 80 numbers each."""
    rng = random.Random(f"{seed}/{split}")
    for _ in range(300 if split == "train" else 60):
        waves = [(rng.uniform(0.5, 2), rng.uniform(6, 20), rng.uniform(0, 6)) for _ in range(2)]
        yield {"values": [sum(high * math.sin(at * 6.2832 / long + start) for high, long, start in waves) for at in range(80)]}

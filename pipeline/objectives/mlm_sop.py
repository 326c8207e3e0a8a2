"""Masked language modelling with sentence order prediction (ALBERT, Lan et al. 2020, section 3.1).

The two segments of a pair follow each other, half of the time in their order (0), half of the time swapped (1).
The loss is the mean over hidden tokens plus the mean over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.objectives._pairs import Pair, PairObjective


@dataclass(frozen=True)
class SentenceOrder(PairObjective):
    """Classify whether the two segments are in order or swapped."""

    # The last sentence of a window had to fit, so it is shorter than the others, and so is the segment that it ends.
    both_ways: ClassVar[bool] = True

    def pair(self, first: list[int], follows: list[int], other: list[int], rng: np.random.Generator) -> Pair:
        """Return both segments of one text, in order or swapped."""
        if rng.random() < 0.5:
            return Pair(first, follows, 0, used=True)
        return Pair(follows, first, 1, used=True)


OBJECTIVE = SentenceOrder

"""Masked language modelling with sentence order prediction (ALBERT, Lan et al. 2020, section 3.1).

Two segments that follow each other, half of the time in their order (0), half of the time swapped (1).
The loss is the sum of both: the mean over hidden tokens and the mean over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.objectives._pairs import Pair, PairObjective


@dataclass(frozen=True)
class SentenceOrder(PairObjective):
    """Ask whether the two segments are in their order or swapped."""

    def pair(self, first: list[int], follows: list[int], other: list[int], chance: np.random.Generator) -> Pair:
        """Return both segments of one text, in one of the two orders."""
        if chance.random() < 0.5:
            return Pair(first, follows, 0, used=True)
        return Pair(follows, first, 1, used=True)


OBJECTIVE = SentenceOrder

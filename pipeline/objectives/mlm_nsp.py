"""Masked language modelling with next sentence prediction (BERT, Devlin et al. 2019, section 3.1).

Half of the pairs are a segment and what follows it (0), half a segment and one of another document (1).
The loss is the sum of both: the mean over hidden tokens and the mean over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.objectives._pairs import Pair, PairObjective


@dataclass(frozen=True)
class NextSentence(PairObjective):
    """Ask whether the second segment follows the first or is from another document."""

    def pair(self, first: list[int], follows: list[int], other: list[int], chance: np.random.Generator) -> Pair:
        """Return what follows, or as often a segment of another document."""
        if chance.random() < 0.5:
            return Pair(first, follows, 0, used=True)
        return Pair(first, other, 1, used=False)


OBJECTIVE = NextSentence

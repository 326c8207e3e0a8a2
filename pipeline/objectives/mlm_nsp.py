"""Masked language modelling with next sentence prediction (BERT, Devlin et al. 2019, section 3.1).

Half of the pairs are a segment and the one that follows it (0), half a segment and one from another document (1).
The loss is the mean over hidden tokens plus the mean over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.objectives._pairs import Pair, PairObjective


@dataclass(frozen=True)
class NextSentence(PairObjective):
    """Classify whether the second segment follows the first or comes from another document."""

    def pair(self, first: list[int], follows: list[int], other: list[int], rng: np.random.Generator) -> Pair:
        """Return the following segment or, half of the time, one from another document."""
        if rng.random() < 0.5:
            return Pair(first, follows, 0, used=True)
        return Pair(first, other, 1, used=False)


OBJECTIVE = NextSentence

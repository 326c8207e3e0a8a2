"""Word vectors by skip-gram (Mikolov et al. 2013a, section 3.2): predict each neighbour from a word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.objectives._vectors import WordVectors


@dataclass(frozen=True)
class SkipGram(WordVectors):
    """One prediction for each pair of a word and a neighbour."""

    def predictions(self, words: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each word as the context of each of its neighbours."""
        position, side = np.nonzero(around >= 0)
        return words[position, None], around[position, side]


OBJECTIVE = SkipGram

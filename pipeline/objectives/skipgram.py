"""Word vectors by skip-gram (Mikolov et al. 2013a, section 3.2): a word tells each of the words around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.objectives._vectors import WordVectors


@dataclass(frozen=True)
class SkipGram(WordVectors):
    """One question for each pair of a word and one beside it."""

    def asks(self, words: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the word as context of each of its neighbours."""
        place, side = np.nonzero(around >= 0)
        return words[place, None], around[place, side]


OBJECTIVE = SkipGram

"""Word vectors by a continuous bag of words (CBOW, Mikolov et al. 2013a, section 3.1): predict a word from its neighbours' mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.objectives._vectors import WordVectors


@dataclass(frozen=True)
class ContinuousBagOfWords(WordVectors):
    """One prediction for each word."""

    def predictions(self, words: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all neighbours of a word as its context."""
        has_context = (around >= 0).any(1)
        order = np.argsort(around < 0, axis=1, kind="stable")  # neighbours before padding
        contexts = np.take_along_axis(around, order, 1)[has_context]
        return contexts[:, : max(1, int((contexts >= 0).sum(1).max(initial=0)))], words[has_context]


OBJECTIVE = ContinuousBagOfWords

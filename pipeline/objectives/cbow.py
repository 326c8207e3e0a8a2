"""Word vectors by a bag of words (CBOW, Mikolov et al. 2013a, section 3.1): the mean of the words around tells the word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.objectives._vectors import WordVectors


@dataclass(frozen=True)
class ContinuousBagOfWords(WordVectors):
    """One question for each word."""

    def asks(self, words: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all neighbours as context of the word."""
        asked = (around >= 0).any(1)
        order = np.argsort(around < 0, axis=1, kind="stable")  # what is there comes first
        contexts = np.take_along_axis(around, order, 1)[asked]
        return contexts[:, : max(1, int((contexts >= 0).sum(1).max(initial=0)))], words[asked]


OBJECTIVE = ContinuousBagOfWords

"""Word vectors by a bag of words (CBOW, Mikolov et al. 2013a, section 3.1): the mean of the words around tells the word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.objectives._vectors import WordVectors


@dataclass(frozen=True)
class ContinuousBagOfWords(WordVectors):
    """One question for each word."""

    def asks(self, words: np.ndarray, place: int, around: np.ndarray) -> Iterator[tuple[list[int], int]]:
        """Yield all neighbours as context of the word."""
        if len(around):
            yield [int(words[other]) for other in around], int(words[place])


OBJECTIVE = ContinuousBagOfWords

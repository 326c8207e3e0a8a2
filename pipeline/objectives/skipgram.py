"""Word vectors by skip-gram (Mikolov et al. 2013a, section 3.2): a word tells each of the words around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.objectives._vectors import WordVectors


@dataclass(frozen=True)
class SkipGram(WordVectors):
    """One question for each pair of a word and one beside it."""

    def asks(self, words: np.ndarray, place: int, around: np.ndarray) -> Iterator[tuple[list[int], int]]:
        """Yield the word as context of each of its neighbours."""
        yield from (([int(words[place])], int(words[other])) for other in around)


OBJECTIVE = SkipGram

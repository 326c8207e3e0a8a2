"""Span swap: two spans of a text change places (random swap of Wei and Zou 2019, of spans instead of words).

Both spans have the same number of tokens and stand in the same text of a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.augmentation import Augmentation
from pipeline.system.config import option


@dataclass(frozen=True)
class SpanSwap(Augmentation):
    """Let spans of tokens change places."""

    changes = "positions"

    swaps: int = option(1, "pairs of spans that change places in each text", at_least=1)
    longest: int = option(5, "tokens of a span, at most", at_least=1)

    def vary(self, ids: np.ndarray, ordinary: np.ndarray, tokenizer: Any, rng: np.random.Generator) -> np.ndarray:
        """Return the ids with spans swapped in each text of two tokens or more; texts lie between tokens of the tokenizer."""
        found = ids.copy()
        edges = np.flatnonzero(np.diff(np.concatenate([[False], ordinary, [False]])))
        for first, end in edges.reshape(-1, 2):
            for _ in range(self.swaps if end - first > 1 else 0):
                length = int(rng.integers(1, min(self.longest, (end - first) // 2) + 1))
                one, two = np.sort(rng.choice(end - first - 2 * length + 2, size=2, replace=False))
                a, b = slice(first + one, first + one + length), slice(first + two + length - 1, first + two + 2 * length - 1)
                found[a], found[b] = found[b].copy(), found[a].copy()
        return found


AUGMENTATION = SpanSwap

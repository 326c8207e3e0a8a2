"""Token dropout: tokens of a text are masked at random, so that no single one decides (Bowman et al. 2016, section 3.2).

A hidden token becomes the mask token, or the unknown one where a tokenizer has no mask. Positions stay as they are, so targets
of single tokens stay theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.augmentation import Augmentation
from pipeline.system.config import option


@dataclass(frozen=True)
class TokenDropout(Augmentation):
    """Hide a share of the tokens."""

    changes = "tokens"

    share: float = option(0.1, "probability with which a token is hidden", at_least=0.001, at_most=0.9)

    def fault(self, tokenizer: Any) -> str | None:
        """Return that the tokenizer has neither a mask nor an unknown token, or None."""
        return None if _hidden(tokenizer) is not None else "the tokenizer has neither a mask token nor an unknown one"

    def vary(self, ids: np.ndarray, ordinary: np.ndarray, tokenizer: Any, rng: np.random.Generator) -> np.ndarray:
        """Return the ids with hidden ones among them."""
        hidden = _hidden(tokenizer)
        assert hidden is not None
        return np.where(ordinary & (rng.random(len(ids)) < self.share), hidden, ids)


def _hidden(tokenizer: Any) -> int | None:
    """Return the token that stands for a hidden one."""
    mask = tokenizer.mask_token_id
    return tokenizer.unk_token_id if mask is None else mask  # type: ignore[no-any-return]


AUGMENTATION = TokenDropout

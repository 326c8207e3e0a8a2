"""Examples → batches, with random choices that depend on (seed, epoch, example) and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.batches import pad
from pipeline.objectives import Example, Objective

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

HELD_OUT_BATCH = 32  # held-out rows that are scored together; retrieval looks for a text's other half among them
EXAMPLE = "example"  # the column that numbers the examples


@dataclass
class Corrupting:
    """Corrupt each example anew in each epoch, then pad; wherever a run is resumed, it makes the same batches."""

    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    seed: int
    epoch: int = 0

    def rng(self, row: Example) -> np.random.Generator:
        """Return the random number generator of an example in this epoch."""
        return np.random.default_rng([self.seed, self.epoch, row[EXAMPLE]])

    def __call__(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return (batch, length) int64 tensors; a column of numbers becomes (batch,)."""
        corrupted = [self.objective.corrupt(row, self.tokenizer, self.rng(row)) for row in rows]
        plain = [{key: value for key, value in row.items() if key != EXAMPLE} for row in corrupted]
        return pad(plain, int(self.tokenizer.pad_token_id))

"""Rows → batches, with choices that depend on (seed, epoch, example) and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.tokens import IGNORED
from pipeline.objectives import Example, Objective

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

HELD_OUT_BATCH = 32  # rows that are judged together; of so many a text finds its other half
EXAMPLE = "example"  # the column that numbers the examples
_FILL = {"labels": IGNORED, "attention_mask": 0, "token_type_ids": 0}  # all else is padded with the padding token


@dataclass
class Corrupting:
    """Corrupt each example anew in each epoch, then pad; resumed anywhere it makes the same batches."""

    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    seed: int
    epoch: int = 0

    def chance(self, row: Example) -> np.random.Generator:
        """Return the random numbers of an example in this epoch."""
        return np.random.default_rng([self.seed, self.epoch, row[EXAMPLE]])

    def __call__(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return (batch, length) int64 tensors; a column of numbers becomes (batch,)."""
        seen = [self.objective.corrupt(row, self.tokenizer, self.chance(row)) for row in rows]
        plain = [{key: value for key, value in row.items() if key != EXAMPLE} for row in seen]
        return pad(plain, int(self.tokenizer.pad_token_id))


def pad(rows: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad lists on the right to the longest of their column, and add the attention mask of `input_ids`."""
    import torch

    batch: dict[str, Any] = {}
    for key, first in rows[0].items():
        if isinstance(first, (list, np.ndarray)):
            longest = max(len(row[key]) for row in rows)
            fill = _FILL.get(key, pad_id)
            batch[key] = torch.tensor([[*row[key], *[fill] * (longest - len(row[key]))] for row in rows])
        else:
            batch[key] = torch.tensor([row[key] for row in rows])
    longest = batch["input_ids"].shape[1]
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(longest) < lengths.unsqueeze(1)).long()
    return batch

"""What a trainer reads, and padding, by which rows of different lengths become one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.tokens import IGNORED

if TYPE_CHECKING:
    import torch

_FILL = {"labels": IGNORED, "attention_mask": 0, "token_type_ids": 0}  # all else is padded with the padding token


@dataclass(frozen=True)
class Batches:
    """How the rows of a stage become batches: the same for training, for the mask proof and for checks before a run."""

    dataset: Any  # of examples, one a row
    collator: Callable[[list[Any]], Mapping[str, Any]]  # examples → a batch
    sample: Mapping[str, Any]  # the columns of the first example before packing


def pad(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
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

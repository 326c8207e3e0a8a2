"""What a trainer reads, and padding, by which rows of different lengths become one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.models.logits import IGNORED

if TYPE_CHECKING:
    import torch

IDS = "input_ids"  # what a column of tokens that a model reads is called, or its ending: chosen_input_ids
_FILL = {"labels": IGNORED, "mask": 0, "token_type_ids": 0}  # by the ending; all else is padded with the padding token


@dataclass(frozen=True)
class Batches:
    """How the rows of a stage become batches: the same for training, for the mask proof and for checks before a run."""

    dataset: Any  # of examples, one a row
    collator: Callable[[list[Any]], Mapping[str, Any]]  # examples → a batch
    sample: Mapping[str, Any]  # the columns of the first example before packing
    sampler: Callable[[Any, Any], Any] | None = None  # arguments, data set → its order, where it isn't the stock Trainer's


def pad(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad lists on the right to the longest of their column, and add the attention mask of each column of ids."""
    import numpy as np
    import torch

    batch: dict[str, Any] = {}
    for key, first in rows[0].items():
        if isinstance(first, (list, np.ndarray)):
            longest = max(len(row[key]) for row in rows)
            fill = next((value for ending, value in _FILL.items() if key.endswith(ending)), pad_id)
            batch[key] = torch.tensor([[*row[key], *[fill] * (longest - len(row[key]))] for row in rows])
        else:
            batch[key] = torch.tensor([row[key] for row in rows])
    for prefix in prefixes(rows[0]):
        lengths = torch.tensor([len(row[f"{prefix}{IDS}"]) for row in rows])
        batch[f"{prefix}attention_mask"] = (torch.arange(batch[f"{prefix}{IDS}"].shape[1]) < lengths.unsqueeze(1)).long()
    return batch


def prefixes(batch: Any) -> list[str]:
    """Return what stands before `input_ids` in the names of the columns that are read: nothing, or chosen_ and rejected_.

    A list of rows, from which a trainer samples before it learns, has no such column.
    """
    if not isinstance(batch, Mapping):
        return []
    return [""] if IDS in batch else [key.removesuffix(IDS) for key in batch if key.endswith(IDS)]


def tokens_read(batch: Mapping[str, Any], pad_id: int) -> int:
    """Count the tokens of a batch as the Trainer does: those of the attention mask, or all but padding."""
    total = 0
    for prefix in prefixes(batch):
        mask = batch.get(f"{prefix}attention_mask")
        total += int(mask.sum() if mask is not None else (batch[f"{prefix}{IDS}"] != pad_id).sum())
    return total

"""What a trainer reads: batches, the collator of causal models, and padding, by which rows of different lengths become one tensor."""

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


@dataclass
class CausalCollator:
    """Batch rows for a causal model.

    Packed rows (with `seq_lengths`) get position ids that begin again with each document and no
    attention mask, which is how transformers keeps documents apart; padding is one more document.
    Other rows get an attention mask. Result: (batch, length) int64 `input_ids`, `labels` (-100 where
    nothing is learned) and `position_ids` or `attention_mask`. With `flat` packed rows become one row, without padding.
    `length`: that packed rows are padded to, where batches must all have the same shape.
    """

    pad_id: int
    flat: bool = False
    length: int = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows of different lengths, padded on the right."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        packed = "seq_lengths" in rows[0]
        if packed:
            rows, longest = self._shaped(rows, longest)
        extra = batch.setdefault("position_ids" if packed else "attention_mask", [])
        for row in rows:
            padding = longest - len(row["input_ids"])
            batch["input_ids"].append(list(row["input_ids"]) + [self.pad_id] * padding)
            batch["labels"].append(list(row["labels"]) + [IGNORED] * padding)
            if packed:
                extra.append([position for length in [*row["seq_lengths"], padding] for position in range(length)])
            else:
                extra.append([1] * len(row["input_ids"]) + [0] * padding)
        return {key: torch.tensor(values) for key, values in batch.items()}

    def _shaped(self, rows: Sequence[dict[str, Any]], longest: int) -> tuple[Sequence[dict[str, Any]], int]:
        """Return packed rows as they are to be batched, and the length of a row."""
        if not self.flat:
            return rows, max(longest, self.length)
        joined = {key: [value for row in rows for value in row[key]] for key in ("input_ids", "labels", "seq_lengths")}
        return [joined], max(len(joined["input_ids"]), self.length * len(rows))


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

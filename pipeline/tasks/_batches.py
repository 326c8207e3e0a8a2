"""Examples → batches, for training and for asking a finished model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.objectives._batches import pad
from pipeline.tasks import Example

if TYPE_CHECKING:
    import torch

_TOKENS = 8192  # of a batch that a finished model is asked


@dataclass
class Padding:
    """Pad each column to the longest of the batch."""

    pad_id: int

    def __call__(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return (batch, length) int64 tensors; a column of numbers becomes (batch,)."""
        return pad(rows, self.pad_id)


def batches(
    model: Any, encoded: Sequence[Example], pad_id: int, answer: int = 0
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield the places of examples of like length, and them as a batch where the model is, without gradients.

    `answer`: tokens that the model will write to each.
    """
    import torch

    order = sorted(range(len(encoded)), key=lambda place: -len(encoded[place]["input_ids"]))
    model.eval()
    while order:
        size = max(1, _TOKENS // max(len(encoded[order[0]]["input_ids"]), answer))
        places, order = order[:size], order[size:]
        batch = pad([encoded[place] for place in places], pad_id)
        with torch.no_grad():
            yield places, {key: value.to(model.device) for key, value in batch.items()}


def encode(tokenizer: Any, text: str, pair: str | None, max_length: int, cut: Counter[str]) -> Example:
    """Return the columns of a text or of two, cut at the end of the longer one, which is counted.

    What looks like a special token in a text is text.
    """
    how = {"return_attention_mask": False, "split_special_tokens": True}
    whole = dict(tokenizer(text, pair, **how))
    if len(whole["input_ids"]) <= max_length:
        return whole
    cut[f"ends of texts of more than {max_length} tokens"] += 1
    return dict(tokenizer(text, pair, truncation=True, max_length=max_length, **how))


def units(text: str) -> list[str]:
    """Return the words of a text; each Chinese character is one."""
    return re.findall(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+", text)

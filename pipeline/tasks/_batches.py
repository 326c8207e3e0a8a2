"""Examples → batches, for training and for predictions of a finished model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data.batches import pad
from pipeline.data.scripts import WORD
from pipeline.tasks import Example

if TYPE_CHECKING:
    import torch

_TOKENS = 8192  # of a batch that a finished model predicts


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
    """Yield the numbers of examples of similar length, and these as a batch on the model's device, without gradients.

    `answer`: tokens that the model may generate for each.
    """
    import torch

    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]["input_ids"]))
    model.eval()
    while order:
        size = max(1, _TOKENS // max(len(encoded[order[0]]["input_ids"]), answer))
        numbers, order = order[:size], order[size:]
        batch = pad([encoded[number] for number in numbers], pad_id)
        with torch.no_grad():
            yield numbers, {key: value.to(model.device) for key, value in batch.items()}


def encode(tokenizer: Any, text: str, pair: str | None, max_length: int, truncated: Counter[str]) -> Example:
    """Return the columns of one text or two; too long, they lose the end of the longer one, which is counted.

    What looks like a special token in a text stays text.
    """
    how = {"return_attention_mask": False, "split_special_tokens": True}
    whole = dict(tokenizer(text, pair, **how))
    if len(whole["input_ids"]) <= max_length:
        return whole
    truncated[f"ends of texts of more than {max_length} tokens"] += 1
    return dict(tokenizer(text, pair, truncation=True, max_length=max_length, **how))


def units(text: str) -> list[str]:
    """Return the words of a text; of a script without blanks between words each letter is one."""
    return WORD.findall(text)

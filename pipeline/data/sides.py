"""Pairs of answers as a reward model reads them: each side whole, in the format that its tokenizer knows.

A tokenizer with a chat template reads conversations, up to the token that ends the answer. Any other is an encoder's: it
reads prompt and answer as its two texts, by its own template ([CLS] prompt [SEP] answer [SEP]).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data import shown
from pipeline.data.batches import pad
from pipeline.data.tokens import Tokens, pieces
from pipeline.data.types import Messages, Row
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import torch

    from pipeline.data.rows import Rows

SIDES = ("chosen", "rejected")
_TYPES = "token_type_ids"


def encode(row: Row, tokenizer: Any) -> Tokens:
    """Return `prompt_ids`, with which both sides begin, `chosen_ids` and `rejected_ids`; of an encoder also their token types."""
    if tokenizer.chat_template:
        return shown.pair(row, tokenizer)
    encoded: Tokens = {"prompt_ids": []}
    for side in SIDES:
        columns = tokenizer(_text(row["prompt"]), _text(row[side]), return_attention_mask=False, split_special_tokens=True)
        encoded[f"{side}_ids"] = list(columns["input_ids"])
        if _TYPES in columns:
            encoded[f"{side}_{_TYPES}"] = list(columns[_TYPES])
    return encoded


def _text(messages: Messages) -> str:
    for message in messages:
        if lost := sorted(message.keys() & {"tools", "tool_calls", "reasoning_content"}):
            raise UserError(
                f"an encoder without a chat template reads no {lost[0]}, which rows have; `ignore: [{lost[0]}]` in a recipe"
            )
    return "\n".join(message["content"] for message in messages)


def examples(rows: Rows, tokenizer: Any, max_length: int | None) -> Iterator[dict[str, Any]]:
    """Yield encoded pairs; a pair with a side that is too long is dropped whole, and so is one whose sides are the same tokens."""
    encoded = pieces(rows.kept, lambda row: encode(row, tokenizer), max_length, False, rows.dropped_by_encoding, rows.too_long)
    yield from differing(encoded, rows.dropped_by_encoding)


def differing(pairs: Iterable[dict[str, Any]], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield encoded pairs whose sides differ; count the others, which a template that trims can make equal, in `dropped`."""
    for pair in pairs:
        if pair["chosen_ids"] == pair["rejected_ids"]:
            dropped["chosen equals rejected once encoded"] += 1
        else:
            yield pair


def whole(pair: Tokens, side: str) -> Tokens:
    """Return the columns that a model reads of one side."""
    found = {"input_ids": [*pair["prompt_ids"], *pair[f"{side}_ids"]]}
    return found | ({_TYPES: pair[f"{side}_{_TYPES}"]} if f"{side}_{_TYPES}" in pair else {})


def encode_answer(prompt: Messages, text: str, ended: bool, tokenizer: Any) -> Tokens:
    """Return the columns of one answer; one that was cut off lacks the token that ends it."""
    said = [{"role": "assistant", "content": text.strip()}]
    columns = whole(encode({"prompt": prompt, "chosen": said, "rejected": said}, tokenizer), SIDES[0])
    if not ended and columns["input_ids"][-1] in tokenizer.all_special_ids:
        return {name: ids[:-1] for name, ids in columns.items()}
    return columns


@dataclass
class SidesCollator:
    """Batch pairs for a reward model: (2 · pairs, length), the chosen sides first, padded on the right."""

    pad_id: int
    multiple: int = 1  # of which the length is a multiple

    def __call__(self, pairs: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask`, and `token_type_ids` where a tokenizer gives them."""
        import torch

        batch = pad([whole(pair, side) for side in SIDES for pair in pairs], self.pad_id)
        more = -batch["input_ids"].shape[1] % self.multiple
        fill = {"input_ids": self.pad_id}
        return {key: torch.nn.functional.pad(value, (0, more), value=fill.get(key, 0)) for key, value in batch.items()}

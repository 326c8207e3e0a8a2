"""The score of a trained reward model.

One with the policy's tokenizer reads the very tokens that were sampled. Any other reads the text; where that was cut
off, its row lacks the token that ends an answer, so that truncation is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.data import sides
from pipeline.data.tokens import Tokens
from pipeline.evaluation import inference
from pipeline.models import reward_model, tokenization
from pipeline.rewards import Completion, Reward
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.hardware import device


@dataclass(frozen=True)
class Model(Reward):
    """Reads whole conversations with a model of family `reward`."""

    folder: str = option("", "folder of the reward model, or its hub id", by_content=True)

    def __post_init__(self) -> None:
        if not self.folder:
            raise UserError("options of reward model: folder: is missing; give the folder of a reward model")
        record = manifest.read(Path(self.folder)) if Path(self.folder).is_dir() else None
        if record and record["family"] != reward_model.FAMILY:
            raise UserError(
                f"options of reward model: folder: {record['node']} made a model of family {record['family']}, not {reward_model.FAMILY}"
            )

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return the model's scores; None for what it has no positions for."""
        tokenizer, model = _opened(self.folder)
        rows = [_row(one, tokenizer) for one in completions]
        fitting = [number for number, row in enumerate(rows) if len(row["input_ids"]) <= reward_model.positions(model)]
        found: list[float | None] = [None] * len(rows)
        scored = inference.rewards(model, [rows[number] for number in fitting], int(tokenizer.pad_token_id))
        for number, score in zip(fitting, scored, strict=True):
            found[number] = score
        return found


@cache
def _opened(folder: str) -> tuple[Any, Any]:
    return tokenization.load(folder), reward_model.load(folder).to(device()).eval()


def _row(one: Completion, tokenizer: Any) -> Tokens:
    """Return the sampled tokens where the tokenizer reads them as the policy's does, or else the encoded text."""
    if tokenizer.chat_template:
        written = tokenizer.decode(list(one.ids), skip_special_tokens=True)
        if (
            written.strip() == one.text.strip()
            and tuple(tokenization.render(tokenizer, one.prompt, answer_next=True)) == one.prompt_ids
        ):
            return {"input_ids": [*one.prompt_ids, *one.ids]}
    return sides.encode_answer(one.prompt, one.text, one.ended, tokenizer)


REWARD = Model

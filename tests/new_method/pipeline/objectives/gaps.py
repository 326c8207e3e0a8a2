"""Gaps at equal distances: predict every third token from all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.data.tokens import IGNORED
from pipeline.evaluation.metrics import Metric
from pipeline.objectives import LOSS, Example, Scores
from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.system.config import option


@dataclass(frozen=True)
class Gaps(MaskedLanguageModel):
    """Hide tokens at equal distances."""

    metrics: ClassVar[tuple[Metric, ...]] = (LOSS, Metric("filled", "share of the gaps that are filled right", "share", "more"))
    every: int = option(3, "distance of two gaps", at_least=2)

    def corrupt(self, example: Example, tokenizer: Any, rng: np.random.Generator) -> Example:
        """Hide one token in `every`, from a random one on."""
        ids = np.array(example["input_ids"])
        chosen = (np.arange(len(ids)) + rng.integers(self.every)) % self.every == 0
        hidden = np.where(chosen, tokenizer.mask_token_id, ids)
        return example | {"input_ids": hidden.tolist(), "labels": np.where(chosen, ids, IGNORED).tolist()}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return nats and right guesses of each row."""
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        gaps = batch["labels"] != IGNORED
        right = (logits.argmax(-1) == batch["labels"]) & gaps
        return super().scores(model, batch) | {"filled": (right.sum(1).float().tolist(), gaps.sum(1).float().tolist())}


OBJECTIVE = Gaps

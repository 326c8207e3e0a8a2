"""What tasks share that train embeddings of whole texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.data.types import Row
from pipeline.models.embedder import embeddings, save_embedder
from pipeline.tasks import Task
from pipeline.tasks._batches import batches, encode


@dataclass(frozen=True)
class Embedder(Task):
    """A task of an encoder without a head, by the mean over a text's tokens."""

    family = "embedder"
    accepts: ClassVar[tuple[str, ...]] = ("masked", "embedder", "discriminator")
    auto = "AutoModel"
    parent_too = True

    def load_model(self, parent: str, labels: Sequence[str] = (), random: bool = False, rows: Sequence[Row] = ()) -> Any:
        """Return an encoder without a pooler: no loss would depend on it, so processes would wait for its gradient."""
        model = super().load_model(parent, labels, random, rows)
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        return model

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write an encoder that both transformers and sentence-transformers load."""
        super().save(model, tokenizer, folder)
        save_embedder(model, folder)


def embedded(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int, truncated: Counter[str]) -> np.ndarray:
    """Return the embedding of each text, of length 1; (texts, hidden)."""
    encoded = [{"input_ids": encode(tokenizer, text, None, max_length, truncated)["input_ids"]} for text in texts]
    found = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    for numbers, batch in batches(model, encoded, int(tokenizer.pad_token_id)):
        found[numbers] = embeddings(model, batch).cpu().numpy()
    return found

"""Embeddings of whole texts: the mean over a text's tokens, here and for whoever loads the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What makes a checkpoint of transformers a model of sentence-transformers, too.
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def embeddings(model: Any, batch: Mapping[str, Any]) -> Any:
    """Return the mean over the tokens of each row, scaled to length 1; (batch, hidden) float32."""
    import torch

    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state.float()
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def save_embedder(model: Any, folder: Path) -> None:
    """Write into an encoder's checkpoint, in the form of sentence-transformers, that an embedding is the mean over tokens."""
    (folder / "modules.json").write_text(json.dumps(_MODULES, indent=2) + "\n", encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n", encoding="utf-8")

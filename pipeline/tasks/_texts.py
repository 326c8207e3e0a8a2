"""What tasks share that give a text, or two that are read together, to a model with a head for whole texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.data.recipe import Rows
from pipeline.tasks import Example
from pipeline.tasks._batches import batches, encode


def encoded(rows: Rows, tokenizer: Any, max_length: int) -> Iterator[Example]:
    """Yield the columns of each row; a long text loses its end, which is counted."""
    for row in rows.kept:
        yield encode(tokenizer, row["text"], row.get("text_pair"), max_length, rows.truncated)


def logits(model: Any, tokenizer: Any, rows: Rows, max_length: int) -> np.ndarray:
    """Return what the head says of each row; (rows, outputs) float32."""
    found = np.zeros((len(rows.kept), model.config.num_labels), dtype=np.float32)
    for numbers, batch in batches(model, list(encoded(rows, tokenizer, max_length)), int(tokenizer.pad_token_id)):
        found[numbers] = model(**batch).logits.float().cpu().numpy()
    return found


def last_layer(model: Any) -> Any:
    """Return the linear layer that gives the logits."""
    import torch

    wide = model.config.num_labels
    return [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one.out_features == wide][-1]

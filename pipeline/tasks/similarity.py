"""Semantic similarity of two texts, by the cosine of their embeddings (Reimers and Gurevych 2019, section 3).

An embedding is the mean over a text's tokens. The loss is Σ (cosine - score)², with scores scaled to [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, correlation
from pipeline.evaluation.metrics import Metric
from pipeline.models.embedder import embeddings, save_embedder
from pipeline.tasks import Example, Prediction, Task
from pipeline.tasks._batches import Padding, batches, encode


@dataclass(frozen=True)
class Similarity(Task):
    """Make the cosine of two embeddings follow the similarity of their texts."""

    reads = "similarity"
    family = "embedder"
    accepts: ClassVar[tuple[str, ...]] = ("masked", "embedder", "discriminator")
    auto = "AutoModel"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "spearman",
            "rank correlation: how well the order of the predicted similarities is the order of the scores; 1 is perfect",
            "score",
            "more",
        ),
        Metric("pearson", "linear correlation of the predicted similarities with the scores; 1 is perfect", "score", "more"),
    )
    primary = "spearman"
    baseline_name = "share of words in common"

    def load_model(self, parent: str, labels: Sequence[str] = (), random: bool = False) -> Any:
        """Return an encoder without a pooler: no loss would depend on it, so processes would wait for its gradient."""
        model = super().load_model(parent, labels, random)
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        return model

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield both texts of a pair and its score."""
        for number, row in enumerate(rows.kept):
            one, two = (encode(tokenizer, row[side], None, max_length, rows.truncated) for side in ("text", "text_pair"))
            yield {"input_ids": one["input_ids"], "other_ids": two["input_ids"], "score": float(row["score"]), "row": number}

    def collator(self, tokenizer: Any, dataset: Any) -> Any:
        """Return a collator that scales scores to [0, 1] by the least and the greatest of the training rows."""
        scores = dataset["score"]
        return Scaled(int(tokenizer.pad_token_id), min(scores), max(scores))

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of pairs."""
        return {"loss": len(batch["score"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return Σ (cosine - score)²; the batch holds all first texts, then all second ones."""
        one, two = embeddings(model, batch).chunk(2)
        return {"loss": (((one * two).sum(-1) - batch["score"]) ** 2).sum()}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return the cosine of each pair."""
        found = []
        for side in ("text", "text_pair"):
            encoded = [encode(tokenizer, row[side], None, max_length, rows.truncated) for row in rows.kept]
            encoded = [{"input_ids": columns["input_ids"]} for columns in encoded]
            vectors: list[Any] = [None] * len(rows.kept)
            for numbers, batch in batches(model, encoded, int(tokenizer.pad_token_id)):
                for number, vector in zip(numbers, embeddings(model, batch).cpu().numpy(), strict=True):
                    vectors[number] = vector
            found.append(vectors)
        return [{"score": round(float(one @ two), 6)} for one, two in zip(*found, strict=True)]

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the share of a pair's words that both texts have (Jaccard)."""
        found = []
        for row in rows:
            one, two = (set(row[side].lower().split()) for side in ("text", "text_pair"))
            found.append({"score": round(len(one & two) / max(1, len(one | two)), 6)})
        return found

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return Spearman's and Pearson's correlation with the scores."""
        right, predicted = np.array([float(row["score"]) for row in rows]), np.array([line["score"] for line in predictions])
        return {"spearman": correlation(_ranks(right), _ranks(predicted)), "pearson": correlation(right, predicted)}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write an encoder that both transformers and sentence-transformers load."""
        super().save(model, tokenizer, folder)
        save_embedder(model, folder)


@dataclass
class Scaled(Padding):
    """Pad both sides, and scale the scores."""

    least: float
    most: float

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return (2 · batch, length) ids, all first texts before all second ones, and `score`, (batch,) float32."""
        import torch

        batch = super().__call__([{"input_ids": row[side]} for side in ("input_ids", "other_ids") for row in rows])
        scores = torch.tensor([row["score"] for row in rows], dtype=torch.float32)
        return batch | {"score": (scores - self.least) / max(self.most - self.least, 1e-9)}


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks, (items,); equal values share their mean rank."""
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[position]


TASK = Similarity

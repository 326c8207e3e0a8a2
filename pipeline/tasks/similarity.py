"""Semantic similarity of two texts, by the cosine of their embeddings (Reimers and Gurevych 2019, section 3).

An embedding is the mean over a text's tokens. The loss is Σ (cosine - score)², with scores scaled to [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, correlation, ranks
from pipeline.evaluation.metrics import Metric
from pipeline.models.embedder import embeddings
from pipeline.tasks import PEARSON, SPEARMAN, Example, Prediction, _rivals
from pipeline.tasks._batches import Padding, encode
from pipeline.tasks._embedders import Embedder, embedded


@dataclass(frozen=True)
class Similarity(Embedder):
    """Make the cosine of two embeddings follow the similarity of their texts."""

    reads = "similarity"
    metrics: ClassVar[tuple[Metric, ...]] = (SPEARMAN, PEARSON)
    primary = "spearman"
    baseline_name = "share of words in common"

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
        one, two = (
            embedded(model, tokenizer, [row[side] for row in rows.kept], max_length, rows.truncated)
            for side in ("text", "text_pair")
        )
        return _said((one * two).sum(-1))

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the share of a pair's words that both texts have (Jaccard)."""
        found = []
        for row in rows:
            one, two = (set(row[side].lower().split()) for side in ("text", "text_pair"))
            found.append({"score": round(len(one & two) / max(1, len(one | two)), 6)})
        return found

    def rivals(self, training: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, list[Prediction]]]:
        """Yield the cosine of TF-IDF."""
        inputs = _rivals.tfidf([row[side] for row in training for side in ("text", "text_pair")])
        one, two = (inputs([row[side] for row in rows]) for side in ("text", "text_pair"))
        yield _rivals.COSINE, _said(np.asarray(one.multiply(two).sum(-1)).ravel())

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return Spearman's and Pearson's correlation with the scores."""
        right, predicted = np.array([float(row["score"]) for row in rows]), np.array([line["score"] for line in predictions])
        return {"spearman": correlation(ranks(right), ranks(predicted)), "pearson": correlation(right, predicted)}


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


def _said(cosines: np.ndarray) -> list[Prediction]:
    return [{"score": round(float(cosine), 6)} for cosine in cosines]


TASK = Similarity

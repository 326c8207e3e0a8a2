"""The number that a text stands for, by least squares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, share
from pipeline.evaluation.metrics import Metric
from pipeline.tasks import ENCODERS, Example, Prediction, Task
from pipeline.tasks._batches import batches, encode


@dataclass(frozen=True)
class Number(Task):
    """Predict a number."""

    reads = "labels"
    family = "classifier"
    accepts: ClassVar[tuple[str, ...]] = ENCODERS
    auto = "AutoModelForSequenceClassification"
    outputs = 1
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("near", "share of the numbers that are guessed to within three", "share", "more"),
        Metric("distance", "mean distance of the guess from the number", "score", "less"),
    )
    primary = "near"
    baseline_name = "mean number"

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield texts with their numbers."""
        for number, row in enumerate(rows.kept):
            encoded = encode(tokenizer, row["text"], None, max_length, rows.truncated)
            yield encoded | {"wanted": float(row["label"]), "row": number}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of texts."""
        return {"loss": len(batch["wanted"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sum of squares."""
        said = model(**{key: value for key, value in batch.items() if key != "wanted"}).logits[:, 0]
        return {"loss": ((said - batch["wanted"]) ** 2).sum()}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return a number for each row."""
        encoded = [encode(tokenizer, row["text"], None, max_length, rows.truncated) for row in rows.kept]
        found: list[Prediction] = [{}] * len(encoded)
        for numbers, batch in batches(model, encoded, int(tokenizer.pad_token_id)):
            for number, said in zip(numbers, model(**batch).logits[:, 0].tolist(), strict=True):
                found[number] = {"number": round(said, 3)}
        return found

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the mean of the training rows."""
        return [{"number": sum(float(row["label"]) for row in training) / len(training)}] * len(rows)

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return how near the predictions are."""
        off = [abs(float(row["label"]) - said["number"]) for row, said in zip(rows, predictions, strict=True)]
        return {"near": share([float(distance <= 3) for distance in off]), "distance": share(off)}


TASK = Number

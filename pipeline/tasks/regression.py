"""Regression: the number that is said of a text, or of two that are read together, by least squares.

The loss is that of transformers' `regression`: Σ (prediction - value)², over values whose mean over the training rows is 0
and whose variance is 1, so that one learning rate fits all scales. The last layer of the model that is handed on gives
values on their own scale again; where it has no bias, as in most decoders, `value_mean` and `value_std` in the configuration
tell the scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, correlation, ranks, root_mean
from pipeline.evaluation.metrics import Metric
from pipeline.system.errors import UserError
from pipeline.tasks import ENCODERS, PEARSON, SPEARMAN, Example, Prediction, Task, _rivals
from pipeline.tasks._batches import Padding
from pipeline.tasks._texts import encoded, last_layer, logits


@dataclass(frozen=True)
class Regression(Task):
    """Predict the value of a text or of a pair of texts."""

    reads = "values"
    family = "classifier"
    accepts: ClassVar[tuple[str, ...]] = (*ENCODERS, "classifier")
    auto = "AutoModelForSequenceClassification"
    outputs = 1
    problem_type = "regression"
    metrics: ClassVar[tuple[Metric, ...]] = (
        PEARSON,
        SPEARMAN,
        Metric("rmse", "root of the mean squared error, on the scale of the values", "score", "less"),
    )
    primary = "pearson"
    baseline_name = "mean value"

    def labels(self, rows: Iterable[Row]) -> list[str]:
        """Return what the one output is called; UserError where all values are the same."""
        values, paired = set[float](), set[bool]()
        for row in rows:
            values.add(row["value"])
            paired.add("text_pair" in row)
        if len(values) < 2:
            raise UserError(f"every row has the value {values.pop():g}; there is nothing to tell apart")
        if len(paired) > 1:
            raise UserError("some rows have one text and some have two; a model reads one or the other")
        return ["value"]

    def load_model(self, parent: str, labels: Sequence[str] = (), random: bool = False, rows: Sequence[Row] = ()) -> Any:
        """Return the parent with a single output; one that it has already goes on from its own predictions."""
        model = super().load_model(parent, labels, random, rows)
        if rows:
            _rescale(model, *_scale([row["value"] for row in rows]))
        return model

    def begin(self, model: Any, rows: Sequence[Row]) -> None:
        """Let a prediction of 0 be the mean of the values."""
        model.config.value_mean, model.config.value_std = _scale([row["value"] for row in rows])

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield texts with their values; long texts lose their end."""
        for number, columns in enumerate(encoded(rows, tokenizer, max_length)):
            yield columns | {"value": float(rows.kept[number]["value"]), "row": number}

    def collator(self, tokenizer: Any, dataset: Any) -> Any:
        """Return a collator that gives values a mean of 0 and a variance of 1 over the training rows."""
        return Standardised(int(tokenizer.pad_token_id), *_scale(dataset["value"]))

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of texts."""
        return {"loss": len(batch["value"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return Σ (prediction - value)²."""
        inputs = {key: value for key, value in batch.items() if key != "value"}
        return {"loss": model(**inputs, labels=batch["value"]).loss * len(batch["value"])}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return a value for each row, on the scale of the training rows."""
        mean, spread = _scale_of(model)
        return _said(mean + spread * logits(model, tokenizer, rows, max_length)[:, 0].astype(float))

    def average(self, predictions: Sequence[Sequence[Prediction]], thresholds: Sequence[float] = ()) -> list[Prediction]:
        """Return the mean value."""
        return _said(np.array([[line["value"] for line in one] for one in predictions]).mean(0))

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the mean of the training rows, which has the least squared error of all constants; it correlates with nothing."""
        return _said(np.full(len(rows), _scale([row["value"] for row in training])[0]))

    def rivals(self, training: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, list[Prediction]]]:
        """Yield a ridge regression."""

        def fit(strength: float, inputs: Any, known: Sequence[Row], asked: Any) -> np.ndarray:
            return _rivals.ridge(strength, inputs, np.array([row["value"] for row in known]), asked)

        yield _rivals.RIDGE, _rivals.linear(self, training, rows, fit, _said)

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return Pearson's and Spearman's correlation with the values, and the root of the mean squared error."""
        true, said = (np.array([line["value"] for line in lines], float) for lines in (rows, predictions))
        return {
            "pearson": correlation(true, said),
            "spearman": correlation(ranks(true), ranks(said)),
            "rmse": root_mean((true - said) ** 2),
        }

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write a plain checkpoint, whose last layer gives values on their own scale where it has a bias."""
        if last_layer(model).bias is not None:
            _rescale(model, 0.0, 1.0)
        super().save(model, tokenizer, folder)


@dataclass
class Standardised(Padding):
    """Pad, and scale the values."""

    mean: float
    spread: float

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the batch with `value`, (batch,) float32, as so many standard deviations above the mean."""
        batch: dict[str, Any] = super().__call__(rows)
        return batch | {"value": (batch["value"].double() - self.mean).float() / self.spread}


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation."""
    return float(np.mean(values)), float(np.std(values)) or 1.0


def _scale_of(model: Any) -> tuple[float, float]:
    """Return the mean and the standard deviation that a model's outputs are told in."""
    return getattr(model.config, "value_mean", 0.0), getattr(model.config, "value_std", 1.0)


def _rescale(model: Any, mean: float, spread: float) -> None:
    """Tell a model's outputs in another mean and standard deviation; its predictions stay the same where its head has a bias."""
    import torch

    before, layer = _scale_of(model), last_layer(model)
    if layer.bias is not None:
        with torch.no_grad():
            layer.weight.mul_(before[1] / spread)
            layer.bias.copy_((layer.bias * before[1] + before[0] - mean) / spread)
    model.config.value_mean, model.config.value_std = mean, spread


def _said(values: np.ndarray) -> list[Prediction]:
    return [{"value": round(float(value), 6)} for value in values]


TASK = Regression

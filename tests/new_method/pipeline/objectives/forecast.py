"""Forecasting (PatchTST, Nie et al. 2023): from the beginning of a window of a series, predict what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from pipeline.chain.stage import Against
from pipeline.data import types
from pipeline.evaluation.metrics import Metric
from pipeline.models.build import load
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.system.config import option
from pipeline.system.errors import UserError

LAST = "last value"  # a rival: what follows stays as it was


@dataclass(frozen=True)
class Forecast(Objective):
    """Predict the numbers that follow."""

    reads = "series"
    family = "forecaster"
    accepts: ClassVar[tuple[str, ...]] = ("forecaster",)
    architectures: ClassVar[tuple[str, ...]] = ("patchtst",)
    tokenizer_type = ""
    pipeline_tag = "time-series-forecasting"
    unread: ClassVar[tuple[str, ...]] = ("vocab_size", "max_length", "language", "tokenizer_recipe")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("error", "mean squared error of what follows, in variances of what came before", "score", "less"),
    )
    judged_by = (Against("error", LAST),)
    note = "What is dashed counts in the loss."

    known: int = option(32, "numbers that are read", at_least=2)
    ahead: int = option(8, "numbers that follow, which are predicted", at_least=1)
    patch: int = option(4, "numbers that the model reads as one", at_least=1)

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return a model with random weights."""
        from transformers import PatchTSTConfig, PatchTSTForPrediction

        width = sizes["hidden_size"]
        config = PatchTSTConfig(
            num_input_channels=1, context_length=self.known, prediction_length=self.ahead, patch_length=self.patch, patch_stride=self.patch,
            d_model=width, num_hidden_layers=sizes["num_hidden_layers"], num_attention_heads=sizes["num_attention_heads"],
            ffn_dim=4 * width, attention_dropout=0.0, ff_dropout=0.0, head_dropout=0.0, positional_dropout=0.0, loss="mse",
            norm_type="layernorm",  # the library's own batchnorm would hang on how a step is cut into batches
        )  # fmt: skip
        return PatchTSTForPrediction(config)

    def load_model(self, parent: str) -> Any:
        """Return the model of a folder or hub id; UserError where it reads or predicts other windows."""
        model = load("PatchTSTForPrediction", parent)
        theirs = {
            "known": model.config.context_length,
            "ahead": model.config.prediction_length,
            "patch": model.config.patch_length,
        }
        if faults := [
            f"objective_options: {name}: the parent has {value}"
            for name, value in theirs.items()
            if getattr(self, name) != value
        ]:
            raise UserError(*faults)
        return model

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield windows of each series, one after the other."""
        whole = self.known + self.ahead
        for number, row in enumerate(text.rows):
            values = row["values"]
            if len(values) < whole:
                text.dropped[f"shorter than {whole} numbers"] += 1
            elif rest := len(values) % whole:
                text.truncated[f"ends of series, shorter than {whole} numbers"] += bool(rest)
            for start in range(0, len(values) - whole + 1, whole):
                yield {"values": values[start : start + whole], "row": number}

    def collator(self, tokenizer: Any, dataset: Any, seed: int) -> Windows:
        """Return what batches windows."""
        return Windows(self.known)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of windows."""
        return {"loss": len(batch["past_values"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the squared error of each window, summed over windows."""
        return {"loss": self._errors(model(past_values=batch["past_values"]).prediction_outputs, batch).sum()}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the squared error of each window."""
        return self._scored(model(past_values=batch["past_values"]).prediction_outputs, batch)

    def rivals(self, known: Sequence[Example], size: int) -> dict[str, Callable[[Mapping[str, Any]], Scores]]:
        """Return what is right where nothing changes."""
        return {LAST: lambda batch: self._scored(batch["past_values"][:, -1:].expand_as(batch["future_values"]), batch)}

    def sample_inputs(self) -> dict[str, torch.Tensor]:
        """Return a wave."""
        return {"past_values": torch.sin(torch.arange(self.known) / 3).reshape(1, -1, 1)}

    def _errors(self, found: Any, batch: Mapping[str, Any]) -> Any:
        spread = batch["past_values"].std(1, keepdim=True) + 1e-3
        return (((found - batch["future_values"]) / spread) ** 2).mean((1, 2))

    def _scored(self, found: Any, batch: Mapping[str, Any]) -> Scores:
        errors = self._errors(found, batch).tolist()
        return {"error": (errors, [1.0] * len(errors))}


@dataclass
class Windows:
    """Batch windows: `past_values` and `future_values`, (windows, numbers, 1) float32."""

    known: int

    def __call__(self, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return what is read and what follows it."""
        values = torch.tensor([row["values"] for row in rows], dtype=torch.float32).unsqueeze(-1)
        return {"past_values": values[:, : self.known], "future_values": values[:, self.known :]}

    def thumbnails(self, batch: Mapping[str, torch.Tensor]) -> list[list[str]]:
        """Return each window as a line."""
        whole = torch.cat([batch["past_values"], batch["future_values"]], 1).squeeze(-1).tolist()
        return [[types.load("series").drawn(values, self.known)] for values in whole]


OBJECTIVE = Forecast

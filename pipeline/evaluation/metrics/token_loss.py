"""Negative log-likelihood for each unit: nats for each token, or bits for each byte of the text."""

import math
from typing import Any

import datasets
import evaluate


class TokenLoss(evaluate.Metric):  # type: ignore[misc]
    """Divide the texts' nats by their tokens, or their bits by their bytes (`unit="byte"`)."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(description=str(__doc__), citation="", inputs_description="nats, units", features=features)

    def _compute(self, predictions: list[float], references: list[float], unit: str = "token") -> dict[str, Any]:
        scale = 1 / math.log(2) if unit == "byte" else 1.0
        scores = [nats * scale for nats in predictions]
        return {"token_loss": sum(scores) / sum(references), "scores": scores, "weights": list(references)}

"""How often one model's answer is better than another's; a tie counts half."""

from typing import Any

import datasets
import evaluate


class WinRate(evaluate.Metric):  # type: ignore[misc]
    """Compare grades of answers to the same prompts: `predictions` are the model's, `references` the rival's."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(description=str(__doc__), citation="", inputs_description="grades", features=features)

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, Any]:
        scores = [(a > b) + 0.5 * (a == b) for a, b in zip(predictions, references, strict=True)]
        return {"win_rate": sum(scores) / len(scores), "scores": scores}

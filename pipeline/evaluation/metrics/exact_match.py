"""Share of answers whose first sentence equals the right one."""

from typing import Any

import datasets
import evaluate


class ExactMatch(evaluate.Metric):  # type: ignore[misc]
    """Compare the first sentence of each prediction with its reference."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=str(__doc__), citation="", inputs_description="texts", features=features)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        scores = []
        for prediction, reference in zip(predictions, references, strict=True):
            head, stop, _ = prediction.strip().partition(".")
            scores.append(float(head + stop == reference.strip()))
        return {"exact_match": sum(scores) / len(scores), "scores": scores}

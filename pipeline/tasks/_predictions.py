"""The predictions of a fine-tuned model, written beside it: every held-out row with what was said, and a confusion matrix."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.types import Row
from pipeline.tasks import Prediction

PREDICTIONS, CONFUSION = "predictions.jsonl", "confusion.csv"


def write(
    folder: Path, rows: Sequence[Row], predicted: Sequence[Prediction], baseline: Sequence[Prediction],
    confusion: dict[str, dict[str, int]],
) -> None:  # fmt: skip
    """Write a line for each row, and the matrix where the task tells labels."""
    with (folder / PREDICTIONS).open("w", encoding="utf-8") as file:
        for row, line, trivial in zip(rows, predicted, baseline, strict=True):
            file.write(json.dumps({"row": row, "said": line, "baseline": trivial}, ensure_ascii=False) + "\n")
    if confusion:
        with (folder / CONFUSION).open("w", encoding="utf-8", newline="") as file:
            cells = csv.writer(file, lineterminator="\n")
            cells.writerow(["true \\ said", *confusion])
            cells.writerows([name, *line.values()] for name, line in confusion.items())


def read(folder: Path) -> tuple[list[Row], list[Prediction], list[Prediction]]:
    """Return rows, the model's predictions and the baseline's; empty where nothing was held out."""
    path = folder / PREDICTIONS
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [json.loads(line) for line in text.split("\n") if line]
    return [line["row"] for line in lines], [line["said"] for line in lines], [line["baseline"] for line in lines]

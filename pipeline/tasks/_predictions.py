"""The predictions of a fine-tuned model, written beside it: every held-out row with what was said, and tables by label."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.data.types import Row
from pipeline.tasks import Prediction

PREDICTIONS, CONFUSION, LABELS = "predictions.jsonl", "confusion.csv", "labels.csv"


class Predictions(NamedTuple):
    """The rows that a node held out, and what was said of them."""

    rows: Sequence[Row]
    said: Sequence[Prediction]
    baseline: Sequence[Prediction]
    rivals: Mapping[str, Sequence[Prediction]]  # by name


def write(
    folder: Path, found: Predictions, confusion: dict[str, dict[str, int]], by_label: dict[str, dict[str, float]]
) -> None:
    """Write a line for each row, and where the task tells labels the matrix and the figures of each label."""
    with (folder / PREDICTIONS).open("w", encoding="utf-8") as file:
        for row, line, trivial, *rivals in zip(found.rows, found.said, found.baseline, *found.rivals.values(), strict=True):
            told = {"row": row, "said": line, "baseline": trivial}
            told |= {"rivals": dict(zip(found.rivals, rivals, strict=True))} if rivals else {}
            file.write(json.dumps(told, ensure_ascii=False) + "\n")
    _table(folder / CONFUSION, "true \\ said", confusion)
    _table(folder / LABELS, "label", by_label)


def _table(path: Path, corner: str, lines: Mapping[str, Mapping[str, float]]) -> None:
    """Write named lines under one heading; no file where there is none."""
    if lines:
        with path.open("w", encoding="utf-8", newline="") as file:
            cells = csv.writer(file, lineterminator="\n")
            cells.writerow([corner, *next(iter(lines.values()))])
            cells.writerows([name, *line.values()] for name, line in lines.items())


def read(folder: Path) -> Predictions:
    """Return what was written; no rows where nothing was held out."""
    path = folder / PREDICTIONS
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [json.loads(line) for line in text.split("\n") if line]
    names = lines[0].get("rivals", {}) if lines else {}
    rivals = {name: [line["rivals"][name] for line in lines] for name in names}
    rows, said, baseline = ([line[key] for line in lines] for key in ("row", "said", "baseline"))
    return Predictions(rows, said, baseline, rivals)

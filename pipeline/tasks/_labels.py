"""Labels that are true of a row and labels that are said of it, counted: F1, precision and recall of each label."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from pipeline.system.errors import UserError

Said = Mapping[str, float]  # label → 1; of a guess that is drawn, how likely it is drawn


def cells(true: Sequence[Collection[str]], said: Sequence[Said]) -> tuple[list[str], np.ndarray]:
    """Return all labels and (rows, 3, labels) counts: right, true, said."""
    names = sorted({name for row in (*true, *said) for name in row})
    column = {name: number for number, name in enumerate(names)}
    found = np.zeros((len(true), 3, len(names)))
    for number, (labels, guessed) in enumerate(zip(true, said, strict=True)):
        for name in labels:
            found[number, 0, column[name]] = guessed.get(name, 0.0)
            found[number, 1, column[name]] = 1
        for name, share in guessed.items():
            found[number, 2, column[name]] = share
    return names, found


def by_label(true: Sequence[Collection[str]], said: Sequence[Said]) -> dict[str, dict[str, float]]:
    """Return label → precision, recall, F1 and the number of rows that it is true of."""
    names, found = cells(true, said)
    right, there, guessed = found.sum(0)
    precision, recall = right / np.maximum(guessed, 1e-12), right / np.maximum(there, 1e-12)
    f1 = 2 * right / np.maximum(there + guessed, 1e-12)
    return {
        name: {"precision": round(float(p), 4), "recall": round(float(r), 4), "f1": round(float(f), 4), "rows": int(n)}
        for name, p, r, f, n in zip(names, precision, recall, f1, there, strict=True)
    }


def mean(predictions: Sequence[Sequence[Mapping[str, Mapping[str, float]]]]) -> list[dict[str, float]]:
    """Return for each row the mean of the probabilities that several models give its labels; UserError where these differ."""
    labels = [sorted(lines[0].get("probabilities", ())) for lines in predictions if lines]
    if other := next((one for one in labels if one != labels[0]), None):
        raise UserError(
            f"predictions of models with different labels can't be averaged: {', '.join(labels[0])}; {', '.join(other)}"
        )
    return [
        {name: round(sum(line["probabilities"][name] for line in lines) / len(lines), 6) for name in lines[0]["probabilities"]}
        for lines in zip(*predictions, strict=True)
    ]

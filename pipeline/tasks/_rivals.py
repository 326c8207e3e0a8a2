"""Linear models on TF-IDF: what can be said of texts by their words and letters alone, without any pretraining.

They are fitted on the rows that the model was trained on. How strongly they are held back, and from which probability on they
say a label, is chosen as a model's settings would be, by the task's own metric on a fifth of these rows, so that a rival is
no straw man. Needs scikit-learn (the extra `probe`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.data.rows import Rows
from pipeline.data.types import Row
from pipeline.system import process
from pipeline.system.errors import UserError
from pipeline.tasks import Prediction, Task

LOGISTIC, RIDGE, COSINE = "logistic regression on TF-IDF", "ridge on TF-IDF", "cosine of TF-IDF"
_STRENGTHS = (1.0, 10.0)  # of logistic regression; of ridge the inverse is the penalty
_MOST = 20_000  # training rows that are read, drawn at random
_SHARE = 0.2

Fit = Callable[[float, Any, Sequence[Row], Any], np.ndarray]  # strength, inputs, their rows, inputs → scores of the latter


def linear(
    task: Task, training: Sequence[Row], rows: Sequence[Row], fit: Fit, *ways: Callable[[np.ndarray], list[Prediction]],
    features: Callable[[Sequence[Row], Sequence[Row]], tuple[Any, Any]] | None = None, strengths: Sequence[float] = _STRENGTHS,
    most: int = _MOST, small: Callable[[Row], Row] = lambda row: row,
) -> list[Prediction]:  # fmt: skip
    """Return the predictions of a linear model; `ways` make them of its scores, and the best of them is taken.

    `features`: makes inputs of rows of both kinds, TF-IDF where nothing is said. `small`: what is held of a training row.
    """
    features = features or tfidf_of
    numbers = sorted(random.Random(0).sample(range(len(training)), min(most, len(training))))
    drawn = process.reading("rivals").along(
        (small(training[number]) for number in numbers), lambda count: f"{count:,} of {len(numbers):,} training rows read"
    )
    read = Rows(kept=list(drawn))

    def scores(strength: float, known: Sequence[Row], asked: Sequence[Row]) -> np.ndarray:
        one, two = features(known, asked)
        return fit(strength, one, known, two)

    def worth(predicted: Sequence[Prediction]) -> float:
        found = task.figures(chosen.validation, predicted)[task.primary]
        return float(found.of(found.items.sum(0)))

    chosen, best = Rows(kept=read.kept), (strengths[0], ways[0])
    try:
        chosen.hold_back(_SHARE, 0, task.reads)
    except UserError:  # of rows too few to hold any back
        return best[1](scores(best[0], read.kept, rows))
    highest = -np.inf
    for strength in strengths:
        found = scores(strength, chosen.kept, chosen.validation)
        for way in ways:
            if (value := worth(way(found))) > highest:
                highest, best = value, (strength, way)
    return best[1](scores(best[0], read.kept, rows))


def logistic(strength: float, inputs: Any, targets: np.ndarray, asked: Any) -> np.ndarray:
    """Return how likely each label is; `targets`: (rows, labels) of 0 and 1. Rare labels weigh as much as frequent ones."""
    from sklearn.linear_model import LogisticRegression

    found = np.zeros((asked.shape[0], targets.shape[1]))
    for label, column in enumerate(targets.T):
        if column.any():  # else nothing is known of it
            model = LogisticRegression(solver="liblinear", C=strength, class_weight="balanced")
            found[:, label] = model.fit(inputs, column).predict_proba(asked)[:, 1]
    return found


def ridge(strength: float, inputs: Any, targets: np.ndarray, asked: Any) -> np.ndarray:
    """Return a value for each row; `targets`: (rows,)."""
    from sklearn.linear_model import Ridge

    return np.asarray(Ridge(alpha=1 / strength).fit(inputs, targets).predict(asked))


def tfidf_of(training: Sequence[Row], rows: Sequence[Row]) -> tuple[Any, Any]:
    """Return sparse inputs of both: of a text its TF-IDF; of two texts that of each, and the product of both."""
    from scipy.sparse import hstack

    texts = [row[side] for row in training for side in ("text", "text_pair") if side in row]
    known = vectorizer(len(training)).fit(texts)

    def inputs(of: Sequence[Row]) -> Any:
        one = known.transform([row["text"] for row in of])
        if "text_pair" not in training[0]:
            return one
        two = known.transform([row["text_pair"] for row in of])
        return hstack([one, two, one.multiply(two)]).tocsr()

    return inputs(training), inputs(rows)


def tfidf(texts: Sequence[str]) -> Callable[[list[str]], Any]:
    """Return what gives texts as TF-IDF of length 1, sparse (texts, parts), with the frequencies of the texts given here."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    found: Callable[[list[str]], Any] = make_pipeline(vectorizer(len(texts)), Normalizer()).fit(texts).transform
    return found


def vectorizer(rows: int) -> Any:
    """Return TF-IDF of words and of the letters within words, which also sees parts of words and scripts without blanks."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    least = 2 if rows > 100 else 1
    shared = {"sublinear_tf": True, "min_df": least}
    return make_union(
        TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", **shared),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), **shared),
    )

"""Classification of a text, or of two texts that are read together (Devlin et al. 2019, section 4.1).

The loss is -Σ w(label) log p(label | text). With `balance: weights`, w is the inverse of the label's share, scaled so
that its mean over the rows is 1; with `sampling`, rows of rare labels are repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, macro_f1, share
from pipeline.evaluation.metrics import Metric
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.tasks import ACCURACY, ENCODERS, MACRO_F1, Example, Prediction, Task, _rivals
from pipeline.tasks._batches import Padding
from pipeline.tasks._labels import by_label, cells, mean
from pipeline.tasks._texts import encoded, logits


@dataclass(frozen=True)
class Classification(Task):
    """Predict the label of a text or of a pair of texts."""

    reads = "labels"
    family = "classifier"
    accepts: ClassVar[tuple[str, ...]] = (*ENCODERS, "classifier")
    auto = "AutoModelForSequenceClassification"
    problem_type = "single_label_classification"
    metrics: ClassVar[tuple[Metric, ...]] = (MACRO_F1, ACCURACY)
    primary = "macro_f1"
    baseline_name = "best guess by frequency"

    balance: Literal["none", "weights", "sampling"] = option("none", "how rare labels are balanced: none, weights or sampling")

    def labels(self, rows: Iterable[Row]) -> list[str]:
        """Return the labels in alphabetical order; UserError where there is only one."""
        labels, paired = set[str](), set[bool]()
        for row in rows:
            labels.add(row["label"])
            paired.add("text_pair" in row)
        found = sorted(labels)
        if len(found) < 2:
            raise UserError(f"every row has the label {found[0]!r}; there is nothing to tell apart")
        if fractions := _fractions(found):
            raise UserError(
                f"label: {len(found):,} different labels, all of them numbers, such as {fractions[0]}: `task: regression` predicts "
                "numbers; where they are names, write them as such"
            )
        if len(paired) > 1:
            raise UserError("some rows have one text and some have two; a model reads one or the other")
        return found

    def labels_of(self, row: Row) -> Iterable[str]:
        """Return the label."""
        return [row["label"]]

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield texts with the number of their label; long texts lose their end."""
        numbers = {name: number for number, name in enumerate(labels)}
        for number, columns in enumerate(encoded(rows, tokenizer, max_length)):
            yield columns | {"label": numbers[rows.kept[number]["label"]], "row": number}

    def collator(self, tokenizer: Any, dataset: Any) -> Any:
        """Return a collator that adds each row's weight."""
        return Weighted(int(tokenizer.pad_token_id), weights(dataset["label"], self.balance))

    def arrange(self, dataset: Any, seed: int) -> Any:
        """With `sampling`, repeat rows of rare labels until all labels have the same number; no row is left out."""
        if self.balance != "sampling":
            return dataset
        labels = np.array(dataset["label"])
        most = np.bincount(labels).max()
        rng = np.random.default_rng(seed)
        chosen = [np.resize(rng.permutation(np.flatnonzero(labels == label)), most) for label in np.unique(labels)]
        return dataset.select(np.sort(np.concatenate(chosen)))

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of texts."""
        return {"loss": len(batch["label"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ w log p(label)."""
        import torch

        inputs = {key: value for key, value in batch.items() if key not in ("label", "weight")}
        nats = torch.nn.functional.cross_entropy(model(**inputs).logits.float(), batch["label"], reduction="none")
        return {"loss": (nats * batch["weight"]).sum()}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return the most likely label of each row, with the probability of every label."""
        import torch

        return probabilities(model, torch.from_numpy(logits(model, tokenizer, rows, max_length)))

    def average(self, predictions: Sequence[Sequence[Prediction]], thresholds: Sequence[float] = ()) -> list[Prediction]:
        """Return the label with the largest mean probability."""
        return [{"label": max(likely, key=lambda name: likely[name]), "probabilities": likely} for likely in mean(predictions)]

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the best that can be said without reading a text, by the labels of the training rows.

        For accuracy that is the most frequent label. For F1 it is a label drawn by the shares of all: of guesses with shares q
        where labels have shares p, the expected F1 of a label is 2pq / (p + q) <= (p + q) / 2, with equality where q = p, so no
        constant label and no coin beats it. `drawn` says that F1 is that of the draw, in expectation.
        """
        counts = Counter(row["label"] for row in training)
        shares = {label: round(count / len(training), 6) for label, count in sorted(counts.items())}
        return [{"label": max(shares, key=lambda name: shares[name]), "probabilities": shares, "drawn": True}] * len(rows)

    def rivals(self, training: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, list[Prediction]]]:
        """Yield a logistic regression of each label against all others, the likeliest of which is said."""
        names = sorted({row["label"] for row in training})

        def fit(strength: float, inputs: Any, known: Sequence[Row], asked: Any) -> np.ndarray:
            targets = np.array([[name == row["label"] for name in names] for row in known], dtype=int)
            return _rivals.logistic(strength, inputs, targets, asked)

        def say(likely: np.ndarray) -> list[Prediction]:
            return [{"label": names[number]} for number in likely.argmax(-1)]

        yield _rivals.LOGISTIC, _rivals.linear(self, training, rows, fit, say)

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return F1 averaged over the labels that occur in the rows, and accuracy."""
        found = cells(*_sets(rows, predictions))[1]
        right = [float(row["label"] == predicted["label"]) for row, predicted in zip(rows, predictions, strict=True)]
        return {"macro_f1": Figure(found.reshape(len(rows), -1), macro_f1), "accuracy": share(right)}

    def by_label(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        """Return precision, recall and F1 of each label."""
        return by_label(*_sets(rows, predictions))

    def confusion(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, dict[str, int]]:
        """Return true label → predicted label → count."""
        names = sorted({row["label"] for row in rows} | {predicted["label"] for predicted in predictions})
        table = {name: dict.fromkeys(names, 0) for name in names}
        for row, predicted in zip(rows, predictions, strict=True):
            table[row["label"]][predicted["label"]] += 1
        return table


def weights(labels: Sequence[int], balance: str) -> np.ndarray:
    """Return what a row of each label counts, (labels,): one or, with `weights`, the inverse of its share."""
    counts = np.bincount(labels)
    return len(labels) / np.maximum(counts, 1) / np.count_nonzero(counts) if balance == "weights" else np.ones(len(counts))


def probabilities(model: Any, logits: Any) -> list[Prediction]:
    """Return the most likely label of each row of logits, with the probability of every label of the model."""
    names = [name for _, name in sorted(model.config.id2label.items())]
    found = []
    for row in logits.softmax(-1).tolist():
        likely = {name: round(probability, 6) for name, probability in zip(names, row, strict=True)}
        found.append({"label": max(likely, key=lambda name: likely[name]), "probabilities": likely})
    return found


def _fractions(labels: Sequence[str]) -> list[str]:
    """Return the labels that are numbers with a fraction, if all labels are numbers."""
    try:
        return [label for label in labels if not float(label).is_integer()]
    except (ValueError, OverflowError):
        return []


def _sets(rows: Sequence[Row], predictions: Sequence[Prediction]) -> tuple[list[list[str]], list[dict[str, float]]]:
    """Return the label of each row as a list of one, and what is said: one label, or the shares of a draw."""
    said = [line["probabilities"] if line.get("drawn") else {line["label"]: 1.0} for line in predictions]
    return [[row["label"]] for row in rows], said


@dataclass
class Weighted(Padding):
    """Pad, and give each row the weight of its label."""

    weights: np.ndarray  # (labels,)

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return the batch with `weight`, (batch,) float32."""
        import torch

        batch = super().__call__(rows)
        return batch | {"weight": torch.from_numpy(self.weights).float()[batch["label"]]}


TASK = Classification

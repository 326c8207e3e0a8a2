"""Multi-label classification: every label of a text is a question of its own, answered yes or no.

The loss is that of transformers' `multi_label_classification`: -Σ log p(label is true or not | text) over texts and labels.
A new head begins at the log odds of each label (Lin et al. 2017, section 4.1): from a bias of zero the first epochs go into
learning that labels are rare, and a small model may stay there, saying none of any text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, macro_f1, ratio_of, share
from pipeline.evaluation.metrics import Metric
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.tasks import ENCODERS, MACRO_F1, Example, Prediction, Task, _rivals
from pipeline.tasks._labels import by_label, cells, mean
from pipeline.tasks._texts import encoded, last_layer, logits


@dataclass(frozen=True)
class MultilabelClassification(Task):
    """Predict all labels that are true of a text or of a pair of texts."""

    reads = "multilabels"
    family = "classifier"
    accepts: ClassVar[tuple[str, ...]] = (*ENCODERS, "classifier")
    auto = "AutoModelForSequenceClassification"
    problem_type = "multi_label_classification"
    metrics: ClassVar[tuple[Metric, ...]] = (
        MACRO_F1,
        Metric("micro_f1", "F1 over all labels of all texts, so that frequent labels count more", "share", "more"),
        Metric("subset_accuracy", "share of the texts all of whose labels are right, with none too many", "share", "more"),
    )
    primary = "macro_f1"
    tunes = "label_threshold"
    baseline_name = "best guess by frequency"

    threshold: float = option(
        0.5, "probability from which on a label is said", at_least=0.0, at_most=1.0, needs=("tuned", False)
    )
    tuned: bool = option(False, "choose that probability by macro F1 on the validation rows")

    def labels(self, rows: Iterable[Row]) -> list[str]:
        """Return the labels in alphabetical order; UserError where there is nothing to tell apart."""
        counts, paired = Counter[str](), Counter[bool]()
        for row in rows:
            counts.update(row["labels"])
            paired["text_pair" in row] += 1
        if always := [label for label, count in counts.items() if count == paired.total()]:
            raise UserError(f"every row has the label {always[0]!r}; there is nothing to tell apart")
        if len(counts) < 2:
            raise UserError(f"labels: {len(counts)} in all rows together; for one label that is true or not use classification")
        if len(paired) > 1:
            raise UserError("some rows have one text and some have two; a model reads one or the other")
        return sorted(counts)

    def labels_of(self, row: Row) -> Iterable[str]:
        """Return the labels."""
        return list(row["labels"])

    def begin(self, model: Any, rows: Sequence[Row]) -> None:
        """Let the bias of each label be the log odds that a row has it."""
        import torch

        bias = last_layer(model).bias
        if bias is None:  # as of most decoders
            return
        counts = Counter(label for row in rows for label in row["labels"])
        true = torch.tensor([float(counts[name]) for _, name in sorted(model.config.id2label.items())])
        with torch.no_grad():
            bias.copy_(torch.log((true + 1) / (len(rows) - true + 1)))

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield texts with a 1 for each label that is true of them and a 0 for each other one."""
        for number, columns in enumerate(encoded(rows, tokenizer, max_length)):
            true = rows.kept[number]["labels"]
            yield columns | {"targets": [int(name in true) for name in labels], "row": number}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of questions: texts times labels."""
        return {"loss": batch["targets"].numel()}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(label is true or not)."""
        inputs = {key: value for key, value in batch.items() if key != "targets"}
        return {"loss": model(**inputs, labels=batch["targets"].float()).loss * batch["targets"].numel()}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return the labels of each row that are likely enough, with the probability of every label."""
        names = [name for _, name in sorted(model.config.id2label.items())]
        likely = 1 / (1 + np.exp(-logits(model, tokenizer, rows, max_length).astype(float)))
        return _said(names, likely, self._threshold(model.config))

    def _threshold(self, config: Any) -> float:
        """Return the probability from which on a model with this configuration says a label."""
        return float(getattr(config, self.tunes, 0.5)) if self.tuned else self.threshold

    def tune(self, model: Any, rows: Sequence[Row], predictions: Sequence[Prediction]) -> list[Prediction]:
        """Choose the best probability of twenty-fourths from which on a label is said, of equally good ones that nearest to 0.5."""
        if not self.tuned:
            return list(predictions)
        likely = np.array([list(line["probabilities"].values()) for line in predictions])
        names = list(predictions[0]["probabilities"])

        def worth(threshold: float) -> tuple[float, float]:
            found = self.figures(rows, _said(names, likely, threshold))[self.primary]
            return round(float(found.of(found.items.sum(0))), 9), -abs(threshold - 0.5)

        chosen = max((number / 24 for number in range(1, 24)), key=worth)
        setattr(model.config, self.tunes, chosen)
        return _said(names, likely, chosen)

    def threshold_of(self, folder: str) -> float:
        """Return what was chosen for the model in a folder, or else the option."""
        from transformers import AutoConfig

        return self._threshold(AutoConfig.from_pretrained(folder, trust_remote_code=False))

    def average(self, predictions: Sequence[Sequence[Prediction]], thresholds: Sequence[float] = ()) -> list[Prediction]:
        """Return the labels whose mean probability is at least the mean of the models' thresholds."""
        found = mean(predictions)
        likely = np.array([list(line.values()) for line in found])
        return _said(list(found[0]), likely, float(np.mean(thresholds or self.threshold))) if found else []

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the best that can be said without reading a text, by the labels of the training rows, for each metric.

        Of guesses with a chance q where a label has a share p the expected F1 is 2pq / (p + q), which rises with q, so by macro F1
        that is every label (Lipton et al. 2014); by micro F1 it is the most frequent ones, as many as are best on the training
        rows; for whole sets it is the most frequent set, which may be none. `guesses` says what is said by which metric.
        """
        counts = Counter(label for row in training for label in row["labels"])
        shares = {label: round(count / len(training), 6) for label, count in sorted(counts.items())}
        frequent = sorted(counts, key=lambda label: (-counts[label], label))
        right = np.cumsum([counts[label] for label in frequent])
        f1 = 2 * right / (right[-1] + len(training) * np.arange(1, len(frequent) + 1))
        sets: Counter[tuple[str, ...]] = Counter(tuple(sorted(row["labels"])) for row in training)
        guesses = {
            "micro_f1": frequent[: int(f1.argmax()) + 1],
            "subset_accuracy": list(min(sets.items(), key=lambda item: (-item[1], item[0]))[0]),
        }
        return [{"labels": list(shares), "probabilities": shares, "guesses": guesses}] * len(rows)

    def rivals(self, training: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, list[Prediction]]]:
        """Yield one logistic regression for each label."""
        names = self.labels(training)

        def fit(strength: float, inputs: Any, known: Sequence[Row], asked: Any) -> np.ndarray:
            targets = np.array([[name in row["labels"] for name in names] for row in known], dtype=int)
            return _rivals.logistic(strength, inputs, targets, asked)

        ways = [partial(_said, names, threshold=threshold) for threshold in (0.5, 0.3, 0.7)]
        yield _rivals.LOGISTIC, _rivals.linear(self, training, rows, fit, *ways)

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return F1 averaged over the labels that occur in the rows, over all answers, and the share of whole sets."""
        found = cells(*_sets(rows, predictions))[1]
        right, true, said = cells(*_sets(rows, _guessed(predictions, "micro_f1")))[1].sum(-1).T
        sets = _guessed(predictions, "subset_accuracy")
        return {
            "macro_f1": Figure(found.reshape(len(rows), -1), macro_f1),
            "micro_f1": ratio_of((2 * right).tolist(), (true + said).tolist()),
            "subset_accuracy": share(
                [float(set(row["labels"]) == set(line["labels"])) for row, line in zip(rows, sets, strict=True)]
            ),
        }

    def by_label(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        """Return precision, recall and F1 of each label."""
        return by_label(*_sets(rows, predictions))


def _sets(rows: Sequence[Row], predictions: Sequence[Prediction]) -> tuple[list[list[str]], list[dict[str, float]]]:
    """Return the labels that are true of each row, and those that are said."""
    return [row["labels"] for row in rows], [dict.fromkeys(line["labels"], 1.0) for line in predictions]


def _guessed(predictions: Sequence[Prediction], metric: str) -> Sequence[Prediction]:
    """Return what is said by a metric, where a guess differs from metric to metric."""
    return [{"labels": line["guesses"][metric]} if "guesses" in line else line for line in predictions]


def _said(names: Sequence[str], likely: np.ndarray, threshold: float) -> list[Prediction]:
    """Return predictions by the probability of each label; (rows, labels)."""
    return [
        {
            "labels": [name for name, probability in zip(names, row, strict=True) if probability >= threshold],
            "probabilities": {name: round(probability, 6) for name, probability in zip(names, row, strict=True)},
        }
        for row in likely.tolist()
    ]


TASK = MultilabelClassification

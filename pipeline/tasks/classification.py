"""Classification of a text, or of two texts that are read together (Devlin et al. 2019, section 4.1).

The loss is -Σ w(label) log p(label | text). With `balance: weights` w is the inverse of the label's share,
scaled so that its mean over the rows is 1; with `sampling` the rows of rare labels come up more often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.system.config import option
from pipeline.data.recipe import Rows
from pipeline.data.shapes import Row
from pipeline.system.errors import UserError
from pipeline.evaluation.intervals import Figure, macro_f1, share
from pipeline.tasks import ENCODERS, Example, Prediction, Task
from pipeline.tasks._batches import Padding, batches, encode


@dataclass(frozen=True)
class Classification(Task):
    """Tell the label of a text or of a pair of texts."""

    shape = "labels"
    family = "classifier"
    accepts: ClassVar[tuple[str, ...]] = (*ENCODERS, "classifier")
    auto = "AutoModelForSequenceClassification"
    primary = "macro_f1"
    rival = "most frequent label"

    balance: Literal["none", "weights", "sampling"] = option("none", "what is done for rare labels: none, weights or sampling")

    def labels(self, rows: Sequence[Row]) -> list[str]:
        """Return the labels in the order of the alphabet; UserError where there is nothing to tell apart."""
        found = sorted({row["label"] for row in rows})
        if len(found) < 2:
            raise UserError(f"every row has the label {found[0]!r}; there is nothing to tell apart")
        if len({"text_pair" in row for row in rows}) > 1:
            raise UserError("some rows have one text and some have two; a model reads one or the other")
        return found

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield texts with the number of their label; a long one loses its end."""
        numbers = {name: number for number, name in enumerate(labels)}
        for number, row in enumerate(rows.kept):
            encoded = encode(tokenizer, row["text"], row.get("text_pair"), max_length, rows.left_out)
            yield encoded | {"label": numbers[row["label"]], "row": number}

    def collator(self, tokenizer: Any, dataset: Any) -> Any:
        """Return a collator that adds each row's weight."""
        counts = np.bincount(dataset["label"])
        weights = np.ones(len(counts))
        if self.balance == "weights":
            weights = len(dataset) / np.maximum(counts, 1) / np.count_nonzero(counts)
        return Weighted(int(tokenizer.pad_token_id), weights)

    def arrange(self, dataset: Any, seed: int) -> Any:
        """Repeat the rows of rare labels until each label has as many; nothing is left out."""
        if self.balance != "sampling":
            return dataset
        labels = np.array(dataset["label"])
        most = np.bincount(labels).max()
        chance = np.random.default_rng(seed)
        places = [np.resize(chance.permutation(np.flatnonzero(labels == label)), most) for label in np.unique(labels)]
        return dataset.select(np.sort(np.concatenate(places)))

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
        """Return the likeliest label of each row, with the probability of every label."""
        encoded = [encode(tokenizer, row["text"], row.get("text_pair"), max_length, rows.left_out) for row in rows.kept]
        names = model.config.id2label
        found: list[Prediction] = [{}] * len(rows.kept)
        for places, batch in batches(model, encoded, int(tokenizer.pad_token_id)):
            for place, chances in zip(places, model(**batch).logits.float().softmax(-1).tolist(), strict=True):
                said = {names[number]: round(chance, 6) for number, chance in enumerate(chances)}
                found[place] = {"label": max(said, key=lambda name: said[name]), "probabilities": said}
        return found

    def guess(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the most frequent label of the training rows, with the share of each."""
        counts = Counter(row["label"] for row in training)
        shares = {label: round(count / len(training), 6) for label, count in sorted(counts.items())}
        return [{"label": max(shares, key=lambda name: shares[name]), "probabilities": shares}] * len(rows)

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return the share that is right, and F1 averaged over the labels that stand in the rows."""
        names = sorted({row["label"] for row in rows} | {said["label"] for said in predictions})
        place = {name: number for number, name in enumerate(names)}
        cells = np.zeros((len(rows), 3, len(names)))  # of each label: right, true, said
        for number, (row, said) in enumerate(zip(rows, predictions, strict=True)):
            cells[number, 0, place[row["label"]]] = row["label"] == said["label"]
            cells[number, 1, place[row["label"]]] = cells[number, 2, place[said["label"]]] = 1
        right = [float(row["label"] == said["label"]) for row, said in zip(rows, predictions, strict=True)]
        return {"macro_f1": Figure(cells.reshape(len(rows), -1), macro_f1), "accuracy": share(right)}

    def confusion(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, dict[str, int]]:
        """Return true label → predicted label → count."""
        names = sorted({row["label"] for row in rows} | {said["label"] for said in predictions})
        table = {name: dict.fromkeys(names, 0) for name in names}
        for row, said in zip(rows, predictions, strict=True):
            table[row["label"]][said["label"]] += 1
        return table


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

"""Embeddings by which a text finds what belongs to it (multiple negatives ranking loss, Henderson et al. 2017, section 4.4).

All other positives of the batch, and all negatives, those of other processes among them, are what a text must not find: the
loss is -log softmax of its cosine with its own positive over τ = 0.05, as sentence-transformers trains it. What is equal to
the positive, or belongs to an equal text, is left out of the sum. Larger batches are harder and better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.data.negatives import gathered
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, share
from pipeline.evaluation.metrics import Metric
from pipeline.models.embedder import embeddings
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.tasks import Example, Prediction, _rivals
from pipeline.tasks._batches import Padding, encode
from pipeline.tasks._embedders import Embedder, embedded

_SIDES = ("text", "positive", "negative")
_PART = 256  # texts that are ranked at once
_EQUAL = 1e-6  # a difference of scores by rounding


@dataclass(frozen=True)
class Retrieval(Embedder):
    """Lay a text nearest to what belongs to it."""

    reads = "triplets"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "accuracy_at_1",
            "share of the texts that lie nearest to their own positive, among those of all rows",
            "share",
            "more",
        ),
        Metric(
            "mrr", "mean of 1 over the rank of a text's own positive, among those of all rows; 1 is perfect", "score", "more"
        ),
    )
    primary = "accuracy_at_1"
    keeps = "tokens"
    baseline_name = "share of words in common"
    accumulates = False  # a batch's texts are each other's negatives, so a part of it would be an easier task

    temperature: float = option(0.05, "τ, what cosines are divided by", at_least=0.001)

    def labels(self, rows: Iterable[Row]) -> list[str]:
        """Return no labels; UserError where some rows have a negative and others none."""
        if len({"negative" in row for row in rows}) > 1:
            raise UserError("some rows have a negative and some have none; give all of them one, or leave the column out")
        return []

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield the tokens of each side."""
        for number, row in enumerate(rows.kept):
            sides = [side for side in _SIDES if side in row]
            ids = {side: encode(tokenizer, row[side], None, max_length, rows.truncated)["input_ids"] for side in sides}
            yield {"input_ids": ids.pop("text"), **{f"{side}_ids": value for side, value in ids.items()}, "row": number}

    def collator(self, tokenizer: Any, dataset: Any) -> Any:
        """Return a collator that says which of the candidates is whose positive."""
        return Ranked(int(tokenizer.pad_token_id))

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of texts that look for their positive."""
        return {"loss": len(batch["positives"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(positive | text) of the batch's texts, over the positives and negatives of all processes."""
        import torch

        size, ids = len(batch["positives"]), batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -1)
        both, (every, start) = embeddings(model, batch), gathered(ids, -1)
        candidates, first = gathered(both[size:])
        numbers = torch.unique(every, dim=0, return_inverse=True)[1].view(-1, len(ids))  # of texts, a line for each process
        excluded = _excluded(numbers, size)[start // len(ids) * size :][:size]
        likeness = (both[:size] @ candidates.T / self.temperature).masked_fill(excluded, -torch.inf)
        return {"loss": torch.nn.functional.cross_entropy(likeness, first + batch["positives"], reduction="sum")}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return the rank of each text's own positive among those of all rows; of a text without one its embedding."""
        vectors = embedded(model, tokenizer, [row["text"] for row in rows.kept], max_length, rows.truncated)
        if not all(row["positive"] for row in rows.kept):
            return [{"embedding": [round(float(value), 6) for value in vector]} for vector in vectors]
        targets, place = _candidates(rows.kept)
        others = embedded(model, tokenizer, targets, max_length, rows.truncated)
        return _ranked(rows.kept, place, lambda part: vectors[part] @ others.T)

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the ranks by the share of words that two texts have in common (Jaccard)."""
        targets, place = _candidates(rows)
        holding: dict[str, list[int]] = {}
        for number, text in enumerate(targets):
            for word in _words(text):
                holding.setdefault(word, []).append(number)
        sizes = np.array([len(_words(text)) for text in targets])

        def in_common(part: slice) -> np.ndarray:
            found = np.zeros((len(rows[part]), len(targets)))
            for line, row in zip(found, rows[part], strict=True):
                words = _words(row["text"])
                for word in words & holding.keys():
                    line[holding[word]] += 1
                line /= np.maximum(len(words) + sizes - line, 1)
            return found

        return _ranked(rows, place, in_common)

    def rivals(self, training: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, list[Prediction]]]:
        """Yield the ranks by the cosine of TF-IDF."""
        inputs = _rivals.tfidf([row[side] for row in training for side in _SIDES if side in row])
        targets, place = _candidates(rows)
        one, two = inputs([row["text"] for row in rows]), inputs(targets)
        yield _rivals.COSINE, _ranked(rows, place, lambda part: (one[part] @ two.T).toarray())

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return how often the own positive is the nearest, and the mean of 1 over its rank."""
        places = [line["rank"] for line in predictions]
        return {"accuracy_at_1": share([float(rank == 1) for rank in places]), "mrr": share([1 / rank for rank in places])}


@dataclass
class Ranked(Padding):
    """Pad texts and candidates together, and tell which candidate is whose positive."""

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return (n + candidates, length) ids, texts before positives before negatives, and `positives`, (n,): their numbers."""
        import torch

        columns = [name for name in ("input_ids", "positive_ids", "negative_ids") if name in rows[0]]
        batch = super().__call__([{"input_ids": row[name]} for name in columns for row in rows])
        return batch | {"positives": torch.arange(len(rows))}


def _excluded(numbers: Any, size: int) -> Any:
    """Return which candidates are no negatives of which texts: those that are a positive of an equal text, but not its own place.

    `numbers`: (processes, size texts before their candidates, the positives first), equal where two of them are;
    (processes · size, processes · candidates) bool.
    """
    import torch

    texts, candidates = numbers[:, :size].flatten(), numbers[:, size:].flatten()
    positives = numbers[:, size : 2 * size].flatten()
    equal, found = texts.unsqueeze(1) == texts, positives.unsqueeze(1) == candidates
    excluded = equal.float() @ found.float() > 0
    places = torch.arange(candidates.numel(), device=numbers.device).view(len(numbers), -1)[:, :size].flatten()
    return excluded.scatter(1, places.unsqueeze(1), False)


def _candidates(rows: Sequence[Row]) -> tuple[list[str], dict[str, int]]:
    """Return the different positives and negatives of all rows, and the number of each."""
    found = sorted({row[side] for row in rows for side in _SIDES[1:] if side in row})
    return found, {text: number for number, text in enumerate(found)}


def _ranked(rows: Sequence[Row], place: Mapping[str, int], scores: Callable[[slice], np.ndarray]) -> list[Prediction]:
    """Return the rank and the score of each row's positive among all candidates; an equal score counts as nearer.

    `scores`: of the texts of a part of the rows, (rows, candidates). Other positives of an equal text do not count.
    """
    belongs: dict[str, set[int]] = {}
    for row in rows:
        belongs.setdefault(row["text"], set()).add(place[row["positive"]])
    found = []
    for start in range(0, len(rows), _PART):
        part = slice(start, start + _PART)
        for row, line in zip(rows[part], scores(part), strict=True):
            own = line[place[row["positive"]]]
            near = line >= own - _EQUAL
            found.append({"rank": 1 + int(near.sum() - near[list(belongs[row["text"]])].sum()), "score": round(float(own), 6)})
    return found


def _words(text: str) -> set[str]:
    return set(text.lower().split())


TASK = Retrieval

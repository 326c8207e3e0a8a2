"""Masked language modelling over two segments of text, with a yes-or-no question about the pair."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pipeline.chain.stage import Against
from pipeline.data.kept import spans
from pipeline.data.token_tables import write
from pipeline.data.tokens import IGNORED
from pipeline.evaluation.metrics import Metric
from pipeline.models.build import build, load, one_of
from pipeline.models.logits import at, summed, token_scores
from pipeline.objectives import LOSS, Example, Scores, Text
from pipeline.objectives._documents import sentences
from pipeline.objectives._rivals import LENGTHS, Lengths
from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.system import cache, cores, process
from pipeline.system.errors import UserError

_SHORT = 0.1  # share of the examples cut to a random length, as in BERT, so that the model sees short texts, too


class Pair(NamedTuple):
    """Two segments in the order in which the model sees them, the label, and whether both come from the document itself."""

    first: list[int]
    second: list[int]
    label: int
    used: bool


@dataclass(frozen=True)
class PairObjective(MaskedLanguageModel):
    """Hide tokens in two segments and classify the pair: 1 where something is wrong with it, else 0."""

    accepts: ClassVar[tuple[str, ...]] = ("masked",)
    architectures: ClassVar[tuple[str, ...]] = ("bert", "albert")
    by_row = False  # a segment may come from another document
    both_ways: ClassVar[bool] = False  # whether half of the documents are cut from their end on, so that lengths tell no order
    metrics: ClassVar[tuple[Metric, ...]] = (
        LOSS,
        Metric(
            "pair_accuracy",
            "share of segment pairs classified correctly, as following each other or not; chance level is 50%",
            "share",
            "more",
        ),
    )
    judged_by = (*MaskedLanguageModel.judged_by, Against("pair_accuracy", LENGTHS), Against("pair_accuracy", "chance"))
    chance_level: ClassVar[Mapping[str, float]] = {"pair_accuracy": 0.5}

    @property
    def weights(self) -> Mapping[str, float]:
        """Both parts of the loss count equally."""
        return {"loss": 1.0, "pair": 1.0}

    @abstractmethod
    def pair(self, first: list[int], follows: list[int], other: list[int], rng: np.random.Generator) -> Pair:
        """Return a pair made from a segment, the one that follows it, and one from another document."""

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return an encoder with two heads, one over the vocabulary and one for the pair."""
        one_of(self.architectures, architecture)
        return build("AutoModelForPreTraining", architecture, tokenizer, sizes)

    def load_model(self, parent: str) -> Any:
        """Return an encoder with both heads; a head that the parent lacks gets random weights."""
        model = load("AutoModelForPreTraining", parent)
        one_of(self.architectures, model.config.model_type)
        return model

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield pairs of segments; documents of one sentence are counted as dropped, a corpus of fewer than two others is refused."""
        self.check(text.tokenizer)
        documents = _Documents(text)
        if short := len(text.rows) - len(documents):
            text.dropped["document of fewer than two sentences"] += short
        if len(documents) < 2:
            raise UserError(
                f"objective: pairs need two documents of two sentences or more, found {len(documents)}; each row is one document"
            )
        for index in range(len(documents)):
            number, body = documents[index]
            rng = np.random.default_rng([text.seed, number])
            others = [other % len(documents) for other in index + rng.integers(1, len(documents), len(body))]
            for pair in self._pairs(body, lambda at: documents[others[at]][1], text.max_length - 3, rng):  # noqa: B023
                yield _joined(pair, text) | {"row": number}

    def _pairs(
        self, body: list[list[int]], strange: Callable[[int], list[list[int]]], room: int, rng: np.random.Generator
    ) -> Iterator[Pair]:
        """Yield the pairs of one document, from its beginning to its end; `strange` gives another document for each sentence."""
        backward = self.both_ways and rng.random() < 0.5
        body = body[::-1] if backward else body
        start = 0
        while start < len(body) - 1:
            size = int(rng.integers(2, room + 1)) if rng.random() < _SHORT else room
            end, length = start, 0
            while end < len(body) and (end < start + 2 or length + len(body[end]) <= size):
                length += len(body[end])
                end += 1
            middle = int(rng.integers(start + 1, end))
            segments = [body[start:middle], body[middle:end]]
            if backward:
                segments = [part[::-1] for part in segments[::-1]]
            front, follows = (list(chain(*part)) for part in segments)
            other = _as_long(strange(start), len(follows), rng)
            pair = self.pair(front, follows, other, rng)
            first, second = _shortened(pair, room, rng)
            yield pair._replace(first=first, second=second)
            start = end if pair.used else middle  # what was not used comes up again

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of hidden tokens and of pairs."""
        return super().counts(batch) | {"pair": batch["pair"].numel()}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(hidden token) and -Σ log p(label of the pair)."""
        import torch

        chosen = batch["labels"] != IGNORED
        with at(model, chosen):
            tokens, pairs = _logits(model, batch)
        pair = torch.nn.functional.cross_entropy(pairs.float(), batch["pair"], reduction="sum")
        return {"loss": summed(tokens, batch["labels"][chosen]), "pair": pair}

    def rivals(self, known: Sequence[Example], size: int) -> dict[str, Callable[[Mapping[str, Any]], Scores]]:
        """Return also what the lengths of the segments tell."""
        return super().rivals(known, size) | {LENGTHS: Lengths(known).scores}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the nats of each row, and whether the pair is classified correctly."""
        tokens, pairs = _logits(model, batch)
        right = (pairs.argmax(-1) == batch["pair"]).float().tolist()
        return {"loss": token_scores(tokens, batch["labels"]), "pair_accuracy": (right, [1.0] * len(right))}


class _Documents:
    """The documents of two sentences or more, each with the number of its row, in a file without a name."""

    def __init__(self, text: Text) -> None:
        progress = process.reading("documents")

        def cut(span: range) -> list[Example]:
            numbered = zip(span, text.rows[span.start : span.stop], strict=True)
            bodies = ((number, sentences(text, row["text"])) for number, row in numbered)
            return [
                {"ids": list(chain(*body)), "lengths": list(map(len, body)), "row": number}
                for number, body in bodies
                if len(body) > 1
            ]

        parts = progress.along(
            cores.each(cut, spans(text.rows)), lambda number: f"cut into sentences: {number:,} parts of {len(text.rows):,}"
        )
        with tempfile.TemporaryDirectory(dir=cache.folder()) as folder:
            self._made = write(chain.from_iterable(parts), Path(folder) / "documents.arrow")

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, index: int) -> tuple[int, list[list[int]]]:
        found = self._made[int(index)]
        ids = iter(found["ids"])
        return int(found["row"]), [list(islice(ids, length)) for length in found["lengths"]]


def _logits(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    outputs = model(**{key: value for key, value in batch.items() if key not in ("labels", "pair")})
    pairs = outputs.get("seq_relationship_logits")
    return outputs.prediction_logits, outputs.sop_logits if pairs is None else pairs


def _as_long(body: list[list[int]], length: int, rng: np.random.Generator) -> list[int]:
    """Return consecutive sentences of a document whose tokens come as near to `length` as its sentences allow.

    If segments from other documents were longer than those that really follow, or cut within a sentence, their
    length would give the label away.
    """
    ends = np.cumsum([0, *map(len, body)])
    starts = np.arange(len(body))
    after = np.clip(np.searchsorted(ends, ends[starts] + length), starts + 1, len(body))
    before = np.maximum(after - 1, starts + 1)
    spans = [(start, end) for start, pair in enumerate(zip(before, after, strict=True)) for end in pair]
    off = np.array([abs(int(ends[end] - ends[start]) - length) for start, end in spans])
    start, end = spans[int(rng.choice(np.flatnonzero(off == off.min())))]
    return list(chain(*body[start:end]))


def _shortened(pair: Pair, room: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Cut tokens off the longer segment, at its front or its back, until both fit."""
    first, second = list(pair.first), list(pair.second)
    while (excess := len(first) + len(second) - room) > 0:
        longer = first if len(first) > len(second) else second
        many = max(1, min(excess, abs(len(first) - len(second))))
        if rng.random() < 0.5:
            del longer[:many]
        else:
            del longer[-many:]
    return first, second


def _joined(pair: Pair, text: Text) -> Example:
    begin, end = text.tokenizer.cls_token_id, text.tokenizer.sep_token_id
    ids = [begin, *pair.first, end, *pair.second, end]
    kinds = [0] * (len(pair.first) + 2) + [1] * (len(pair.second) + 1)
    return {"input_ids": ids, "token_type_ids": kinds, "pair": pair.label}

"""Two segments of text with a question about them, beside masked language modelling."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pipeline.data.tokens import IGNORED
from pipeline.system.errors import UserError
from pipeline.objectives import Example, Scores, Text
from pipeline.objectives._documents import sentences
from pipeline.models.build import at, build, load, one_of, summed, token_scores
from pipeline.objectives.mlm import MaskedLanguageModel

_SHORT = 0.1  # of the examples are cut to a random length, as in BERT, so that short texts are met too


class Pair(NamedTuple):
    """Two segments as the model sees them, the answer to the question, and whether what follows the first was used."""

    first: list[int]
    second: list[int]
    label: int
    used: bool


@dataclass(frozen=True)
class PairObjective(MaskedLanguageModel):
    """Hide tokens in two segments, and ask one question about the pair: 1 where something is wrong with it, else 0."""

    accepts: ClassVar[tuple[str, ...]] = ("masked",)
    architectures: ClassVar[tuple[str, ...]] = ("bert", "albert")
    chance: ClassVar[Mapping[str, float]] = {"pair_accuracy": 0.5}

    @property
    def weights(self) -> Mapping[str, float]:
        """Both parts count alike."""
        return {"loss": 1.0, "pair": 1.0}

    @abstractmethod
    def pair(self, first: list[int], follows: list[int], other: list[int], chance: np.random.Generator) -> Pair:
        """Return a pair made of a segment, the one that follows it, and one of another document."""

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return an encoder with a head over the vocabulary and one over the pair."""
        one_of(self.architectures, architecture)
        return build("AutoModelForPreTraining", architecture, tokenizer, sizes)

    def load_model(self, parent: str) -> Any:
        """Return an encoder with both heads; those that the parent lacks are new."""
        model = load("AutoModelForPreTraining", parent)
        one_of(self.architectures, model.config.model_type)
        return model

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield pairs of segments; a document of one sentence is counted, a corpus without documents is refused."""
        cut = [(number, sentences(text, row["text"])) for number, row in enumerate(text.rows)]
        documents = [(number, body) for number, body in cut if len(body) > 1]
        if short := len(cut) - len(documents):
            text.dropped["document of fewer than two sentences"] += short
        if len(documents) < 2:
            raise UserError(
                f"objective: pairs need two documents of two sentences or more, found {len(documents)}; each row is one document"
            )
        for place, (number, body) in enumerate(documents):
            chance = np.random.default_rng([text.seed, number])
            others = [documents[other % len(documents)][1] for other in place + chance.integers(1, len(documents), len(body))]
            for pair in self._pairs(body, others, text.max_length - 3, chance):
                yield _joined(pair, text) | {"row": number}

    def _pairs(
        self, body: list[list[int]], others: Sequence[list[list[int]]], room: int, chance: np.random.Generator
    ) -> Iterator[Pair]:
        """Yield the pairs of one document, from its beginning to its end; never one with another of itself."""
        start = 0
        while start < len(body) - 1:
            size = int(chance.integers(2, room + 1)) if chance.random() < _SHORT else room
            end, length = start, 0
            while end < len(body) and (end < start + 2 or length + len(body[end]) <= size):
                length += len(body[end])
                end += 1
            middle = int(chance.integers(start + 1, end))
            follows = list(chain(*body[middle:end]))
            other = _as_long(others[start], len(follows), chance)
            pair = self.pair(list(chain(*body[start:middle])), follows, other, chance)
            first, second = _shortened(pair, room, chance)
            yield pair._replace(first=first, second=second)
            start = end if pair.used else middle  # what was not used is read again

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of hidden tokens and of pairs."""
        return super().counts(batch) | {"pair": batch["pair"].numel()}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(hidden token) and -Σ log p(answer about the pair)."""
        import torch

        chosen = batch["labels"] != IGNORED
        with at(model, chosen):
            tokens, pairs = _logits(model, batch)
        pair = torch.nn.functional.cross_entropy(pairs.float(), batch["pair"], reduction="sum")
        return {"loss": summed(tokens, batch["labels"][chosen]), "pair": pair}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the nats of each row, and whether the answer about the pair is right."""
        tokens, pairs = _logits(model, batch)
        right = (pairs.argmax(-1) == batch["pair"]).float().tolist()
        return {"loss": token_scores(tokens, batch["labels"]), "pair_accuracy": (right, [1.0] * len(right))}


def _logits(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    outputs = model(**{key: value for key, value in batch.items() if key not in ("labels", "pair")})
    pairs = outputs.get("seq_relationship_logits")
    return outputs.prediction_logits, outputs.sop_logits if pairs is None else pairs


def _as_long(body: list[list[int]], length: int, chance: np.random.Generator) -> list[int]:
    """Return sentences of a document that follow each other and are as long as `length`, as nearly as it has them.

    Were strangers longer than what really follows, or cut within a sentence, the length would tell them.
    """
    ends = np.cumsum([0, *map(len, body)])
    starts = np.arange(len(body))
    after = np.clip(np.searchsorted(ends, ends[starts] + length), starts + 1, len(body))
    before = np.maximum(after - 1, starts + 1)
    spans = [(start, end) for start, pair in enumerate(zip(before, after, strict=True)) for end in pair]
    off = np.array([abs(int(ends[end] - ends[start]) - length) for start, end in spans])
    start, end = spans[int(chance.choice(np.flatnonzero(off == off.min())))]
    return list(chain(*body[start:end]))


def _shortened(pair: Pair, room: int, chance: np.random.Generator) -> tuple[list[int], list[int]]:
    """Cut tokens off the longer segment, at its front or its back, until both fit."""
    first, second = list(pair.first), list(pair.second)
    while (excess := len(first) + len(second) - room) > 0:
        longer = first if len(first) > len(second) else second
        many = max(1, min(excess, abs(len(first) - len(second))))
        if chance.random() < 0.5:
            del longer[:many]
        else:
            del longer[-many:]
    return first, second


def _joined(pair: Pair, text: Text) -> Example:
    begin, end = text.tokenizer.cls_token_id, text.tokenizer.sep_token_id
    ids = [begin, *pair.first, end, *pair.second, end]
    kinds = [0] * (len(pair.first) + 2) + [1] * (len(pair.second) + 1)
    return {"input_ids": ids, "token_type_ids": kinds, "pair": pair.label}

"""The loss of held-out replies, given the conversation before them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.data.tokens import encode_messages
from pipeline.data.types import Row
from pipeline.evaluation.inference import num_targets
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import StageModel, Subject
from pipeline.models import parts
from pipeline.models.families import ANSWERING

SHUFFLED = "shuffled pictures"  # a model that learned to look loses by them


class ReplyLoss(Evaluator):
    """Measures how well a chat model predicts the replies of conversations that it was not trained on."""

    reads, gives = "messages", ANSWERING
    metrics = (
        Metric("loss", "mean −log p of a token of a held-out reply, given the conversation before it, in nats", "nats", "less"),
        Metric("bits_per_byte", "−log₂ p of held-out replies for each of their bytes, whatever the tokenizer", "bits", "less"),
    )

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield both figures of the node, its parent and its controls."""
        rows = subject.rows
        sizes = [
            float(sum(len(turn["content"].encode()) for turn in row["messages"] if turn["role"] == "assistant")) for row in rows
        ]
        for model in subject.chatting if rows else ():
            yield from _measured(model, model.label, rows, sizes)
        if subject.node.sees and (others := shuffled(rows)):
            yield from _measured(subject.node, add_shuffled(subject), others, sizes)


def _measured(model: StageModel, label: str, rows: Sequence[Row], sizes: Sequence[float]) -> Iterator[Measurement]:
    encoded: list[Any] = [
        model.prompt(
            parts.filled(row["messages"], row.get("images", ())), lambda turns: encode_messages(turns, model.tokenizer)
        )
        for row in rows
    ]
    nats, tokens = model.nats(encoded), [float(count) for count in num_targets(encoded)]
    yield Measurement(label, "loss", share(nats, tokens))
    yield Measurement(label, "bits_per_byte", share([value / math.log(2) for value in nats], sizes))


def add_shuffled(subject: Subject) -> str:
    """Put the node, shown the pictures of other rows, into its table as a baseline; return its label there."""
    subject.add_model(SHUFFLED, "baseline", f"{subject.node.label}, shown the pictures of other rows")
    return SHUFFLED


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, each with the next other pictures that are as many, of whatever row; none where nothing can be exchanged.

    All rows about the same pictures get the same ones. Texts stay as they are, and so does what has no counterpart.
    """
    shown = {_looks(row): row["images"] for row in rows if row.get("images")}
    alike: dict[int, list[tuple[str, ...]]] = {}
    for looks in shown:
        alike.setdefault(len(looks), []).append(looks)
    other = {one: after for some in alike.values() for one, after in zip(some, [*some[1:], some[0]], strict=True)}
    if all(one == after for one, after in other.items()):
        return []
    return [row | {"images": shown[other[_looks(row)]]} if row.get("images") else row for row in rows]


def _looks(row: Row) -> tuple[str, ...]:
    return tuple(one["hash"] for one in row["images"])


EVALUATOR = ReplyLoss()

"""How well a model tells the chosen from the rejected answer of held-out pairs, and how well it predicts the chosen one.

The implicit reward of an answer (Rafailov et al. 2023, section 4) is log p(answer) - log p_base(answer). The base model,
the oldest ancestor, is the reference of every model here, so that figures compare and how rare an answer's words are
cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.data.tokens import IGNORED, Tokens, encode_pair
from pipeline.data.types import Row
from pipeline.evaluation.inference import num_targets
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.metrics.win_rate import EVEN
from pipeline.evaluation.subject import StageModel, Subject
from pipeline.models import parts
from pipeline.models.families import ANSWERING


class _Side(NamedTuple):
    """One side of every pair under one model."""

    nats: list[float]
    tokens: list[float]


class PairAccuracy(Evaluator):
    """Measures what a model has learned of a preference."""

    reads, gives = "preference", ANSWERING
    metrics = (
        Metric("accuracy", "share of held-out pairs in which the chosen answer has the higher implicit reward: its "
                           "log-probability rose more, or fell less, since the base model", "share", "more"),
        Metric("likelier", "share of held-out pairs in which the chosen answer as a whole is the likelier one", "share", "more"),
        Metric("loss", "mean −log p of a token of the chosen answer, in nats", "nats", "less"),
        Metric("bits_per_byte", "−log₂ p of the chosen answers for each of their bytes", "bits", "less"),
    )  # fmt: skip

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield all figures of the node, its parent and its controls, and of whoever draws the better answer."""
        rows = subject.rows
        if not rows:
            return
        base = _sides(subject.base, rows) if subject.base else None
        sizes = [float(sum(len(turn["content"].encode()) for turn in row["chosen"])) for row in rows]
        for metric in ("likelier", "accuracy") if base else ("likelier",):
            yield Measurement(EVEN, metric, share([0.5] * len(rows)))
        for model in subject.chatting:
            chosen, rejected = _sides(model, rows)
            likelier = [float(a < b) for a, b in zip(chosen.nats, rejected.nats, strict=True)]
            yield Measurement(model.label, "likelier", share(likelier))
            if base:
                four = zip(chosen.nats, base[0].nats, rejected.nats, base[1].nats, strict=True)
                yield Measurement(model.label, "accuracy", share([float(c - cb < r - rb) for c, cb, r, rb in four]))
            yield Measurement(model.label, "loss", share(chosen.nats, chosen.tokens))
            yield Measurement(model.label, "bits_per_byte", share([nats / math.log(2) for nats in chosen.nats], sizes))


def _sides(model: StageModel, rows: list[Row]) -> tuple[_Side, _Side]:
    """Return the chosen and the rejected sides under a model."""
    pairs = [_encoded(model, row) for row in rows]
    found = []
    for side in ("chosen_ids", "rejected_ids"):
        encoded: list[Tokens] = [
            {**pair, "input_ids": pair["prompt_ids"] + pair[side], "labels": [IGNORED] * len(pair["prompt_ids"]) + pair[side]}
            for pair in pairs
        ]
        found.append(_Side(model.nats(encoded), [float(count) for count in num_targets(encoded)]))
    return found[0], found[1]


def _encoded(model: StageModel, row: Row) -> dict[str, Any]:
    """Return a pair as a model reads it, its pictures under `pixels`."""
    sides = {side: row[side] for side in ("chosen", "rejected")}
    return model.prompt(
        parts.filled(row["prompt"], row.get("images", ())),
        lambda prompt: encode_pair({"prompt": prompt, **sides}, model.tokenizer),
    )


EVALUATOR = PairAccuracy()

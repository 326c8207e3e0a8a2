"""How well a model tells liked from disliked answers to held-out prompts, and how well it predicts those that were liked.

What is ranked is the implicit reward of an answer (Rafailov et al. 2023, section 4), log p(answer) - log p_parent(answer):
by how much a model made it likelier than the parent of the node finds it. The parent itself ranks none above another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.data.tokens import IGNORED, encode_answers
from pipeline.data.types import Row
from pipeline.evaluation.inference import num_targets
from pipeline.evaluation.intervals import Figure, share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.metrics.win_rate import EVEN
from pipeline.evaluation.subject import StageModel, Subject
from pipeline.models import parts
from pipeline.models.families import ANSWERING


class Thumbs(Evaluator):
    """Measures what a model has learned of thumbs up and down."""

    reads, gives = "feedback", ANSWERING
    metrics = (
        Metric("auc", "chance that of a liked and a disliked held-out answer, to whatever prompts, the liked one became likelier "
                      "by more since the parent, ties counted half; 50% where the two can't be told apart", "share", "more"),
        Metric("loss", "mean −log p of a token of an answer that was liked, in nats", "nats", "less"),
        Metric("bits_per_byte", "−log₂ p of the answers that were liked for each of their bytes", "bits", "less"),
    )  # fmt: skip

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield all figures of the node, its parent and its controls."""
        rows = subject.rows
        if not rows or subject.parent is None:
            return
        liked = np.array([row["label"] for row in rows])
        groups = [json.dumps([row["prompt"], *(one["hash"] for one in row.get("images", ()))]) for row in rows]
        sizes = [float(sum(len(turn["content"].encode()) for turn in row["completion"])) for row in rows]
        before: np.ndarray | None = None
        for model in sorted(subject.chatting, key=lambda model: model is not subject.parent):  # the parent first
            encoded = [_encoded(model, row) for row in rows]
            nats = np.array(model.nats(encoded))
            before = nats if model is subject.parent else before
            if before is not None and 0 < liked.sum() < len(liked):
                yield Measurement(model.label, "auc", auc(before - nats, liked), groups)
                if model is subject.node:
                    yield Measurement(EVEN, "auc", auc(np.zeros(len(rows)), liked), groups)
            tokens = np.array(num_targets(encoded), float)
            if liked.any():
                yield Measurement(model.label, "loss", share(nats[liked], tokens[liked]))
                yield Measurement(
                    model.label, "bits_per_byte", share(nats[liked] / math.log(2), [sizes[at] for at in liked.nonzero()[0]])
                )


def auc(scores: np.ndarray, positive: np.ndarray) -> Figure:
    """Return the area under the ROC curve as a figure whose spread is that of DeLong et al. 1988.

    An item adds the share of the other side that it stands on the right side of, ties counted half. Of items drawn anew, the
    figure is linear in both sides: mean over the positive + mean over the negative - the area.
    """
    above = (scores[:, None] > scores[None, :]) + 0.5 * (scores[:, None] == scores[None, :])
    right = np.where(positive, above[:, ~positive].mean(1), above[positive].mean(0))
    area = float(right[positive].mean())
    sides = np.stack([positive * right, positive, ~positive * right, ~positive], -1).astype(float)

    def of(sums: np.ndarray) -> np.ndarray:
        one, ones, other, others = np.moveaxis(sums, -1, 0)
        return np.asarray(one / np.maximum(ones, 1) + other / np.maximum(others, 1) - area)

    return Figure(sides, of)


def _encoded(model: StageModel, row: Row) -> dict[str, Any]:
    """Return an answer as a model reads it, the pictures of its prompt under `pixels`."""
    found = model.prompt(
        parts.filled(row["prompt"], row.get("images", ())),
        lambda prompt: encode_answers({**row, "prompt": prompt}, model.tokenizer, ["completion"]),
    )
    prompt, answer = found["prompt_ids"], found["completion_ids"]
    return {**found, "input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


EVALUATOR = Thumbs()

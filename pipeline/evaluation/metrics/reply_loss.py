"""The loss of held-out replies, given the conversation before them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipeline.data.tokens import encode_messages
from pipeline.evaluation.inference import num_targets
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import Subject


class ReplyLoss(Evaluator):
    """Measures how well a chat model predicts the replies of conversations that it was not trained on."""

    reads, gives = "messages", ("causal",)
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
            encoded = [encode_messages(row["messages"], model.tokenizer) for row in rows]
            nats, tokens = model.nats(encoded), [float(count) for count in num_targets(encoded)]
            yield Measurement(model.label, "loss", share(nats, tokens))
            yield Measurement(model.label, "bits_per_byte", share([value / math.log(2) for value in nats], sizes))


EVALUATOR = ReplyLoss()

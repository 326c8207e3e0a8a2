"""How far a node moved away from its parent: the KL divergence of whole answers, sampled from the node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.data.tokens import answered
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import Subject
from pipeline.models import parts
from pipeline.models.families import ANSWERING

_READS = ("preference", "feedback", "prompts")  # types of rows whose stages are held to a parent that chats


class KLToParent(Evaluator):
    """Estimates KL(node ‖ parent) = E[log p(answer) − log p_parent(answer)] by one sampled answer to each held-out prompt."""

    gives = ANSWERING
    metrics = (
        Metric("kl_to_parent", "KL divergence from the parent in nats an answer, estimated by one answer to each held-out prompt, "
                               "sampled from the node and cut where evaluation stops generating", "nats", ""),
    )  # fmt: skip

    def applies(self, subject: Subject) -> bool:
        """Say whether node and parent both chat and the node was trained on answers, or on prompts, of one type."""
        both = subject.parent is not None and subject.parent.chats and subject.node.chats
        return super().applies(subject) and subject.reads in _READS and both

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield the estimate for the node."""
        settings, parent, node = subject.settings, subject.parent, subject.node
        assert parent is not None
        turns = [parts.filled(row["prompt"], row.get("images", ())) for row in subject.rows]
        if not turns:
            return
        prompts = [node.prompt(prompt) for prompt in turns]
        sampled = node.replies(turns, settings.max_new_tokens, settings.seed)
        encoded: list[Any] = [
            {**prompt, **answered(prompt["input_ids"], reply.ids)} for prompt, reply in zip(prompts, sampled, strict=True)
        ]
        mine, theirs = node.nats(encoded), parent.nats(encoded)
        yield Measurement(node.label, "kl_to_parent", share([there - here for here, there in zip(mine, theirs, strict=True)]))


EVALUATOR = KLToParent()

"""Whether replies come to an end, and how long they are."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.data import types
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import Subject


class Ending(Evaluator):
    """Looks at greedy replies to held-out prompts."""

    gives = ("causal",)
    metrics = (
        Metric("finished", "share of the replies that the model ends by itself", "share", "more"),
        Metric("reply_length", "mean length of a reply in tokens", "tokens", ""),
    )

    def applies(self, subject: Subject) -> bool:
        """Say whether the node chats."""
        return super().applies(subject) and subject.node.chats

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield both figures of every model that chats."""
        kind, longest = types.load(subject.reads), subject.settings.max_new_tokens
        prompts = [prompt for row in subject.rows if (prompt := kind.prompt(row))]
        for model in subject.compared if prompts else ():
            if model.family == "causal" and model.tokenizer.chat_template:
                replies = model.replies(prompts, longest)
                yield Measurement(model.label, "finished", share([float(reply.ended) for reply in replies]))
                yield Measurement(model.label, "reply_length", share([float(reply.tokens) for reply in replies]))


EVALUATOR = Ending()

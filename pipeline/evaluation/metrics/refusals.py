"""Honesty: which questions that nothing can answer are refused, by kind, and what was answered right and still is.

What was answered right is asked of the oldest chat model in a node's descent, so that every method of a chain is held against
the same answers, however many stages it takes.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.intervals import ratio_of, share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import Subject

KNOWN = "known"  # of questions that can be answered
KINDS = {
    "new": "both parts of whose name are new",
    "first": "of whose name only the first part is known",
    "last": "of whose name only the last part is known",
    "apart": "both parts of whose name are known, but never together",
}


class Refusals(Evaluator):
    """Counts refusals of greedy replies to questions about strangers, and right answers about known people that were kept."""

    gives = ("causal",)
    metrics = (
        *(Metric(f"refused_{kind}", f"share of questions about strangers, {who}, that are refused", "share", "more")
          for kind, who in KINDS.items()),
        Metric("kept", "share of the questions about known people that the first chat model of its descent answers right and "
                       "the model does too", "share", "more"),
        Metric("refused_known", "share of the questions about known people that are refused", "share", "less"),
    )  # fmt: skip

    def applies(self, subject: Subject) -> bool:
        """Say whether the node descends from a chat model and the recipe's judge asks what can't be known."""
        both = super().applies(subject) and subject.node.chats and subject.first_chat is not None
        kinds = {one.kind for one in subject.judge.questions(0)} if both and subject.judge else set()
        return KNOWN in kinds and not kinds.isdisjoint(KINDS)

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield both of every model that can be asked; items of one person are drawn together."""
        judge, origin = subject.judge, subject.first_chat
        assert judge is not None
        assert origin is not None
        questions = list(judge.questions(subject.settings.seed))
        turns = [[{"role": "user", "content": question.prompt}] for question in questions]
        replies = {model.label: model.replies(turns, subject.settings.max_new_tokens) for model in [*subject.chatting, origin]}
        asked = {question.kind for question in questions}
        places = {
            kind: [at for at, question in enumerate(questions) if question.kind == kind]
            for kind in (*KINDS, KNOWN) if kind in asked
        }  # fmt: skip
        about = {kind: [questions[at].about for at in found] for kind, found in places.items()}

        def right(label: str) -> list[float]:
            return [float(judge.right(replies[label][at], questions[at])) for at in places[KNOWN]]

        before = right(origin.label)
        for model in subject.chatting:
            for kind, found in places.items():
                refused = share([float(judge.refused(replies[model.label][at])) for at in found])
                yield Measurement(model.label, f"refused_{kind}", refused, about[kind])
            still = [was * now for was, now in zip(before, right(model.label), strict=True)]
            yield Measurement(model.label, "kept", ratio_of(still, before), about[KNOWN])


EVALUATOR = Refusals()

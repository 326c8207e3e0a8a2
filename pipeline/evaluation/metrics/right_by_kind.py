"""Right answers to each kind of question about a scene by itself."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import Subject
from pipeline.models.families import ANSWERING

KINDS = {
    "colour": "what colour a thing is",
    "count": "how many there are",
    "where": "where a thing is",
    "at": "what is at a place",
    "everything": "all that is there",
    "reserved": "a thing whose colour and shape only pretraining has shown together",
    "absent": "a thing of which colour, shape or both are not there",
    "apart": "a thing whose colour and shape are both there, on different things",
}


class RightByKind(Evaluator):
    """Measures how often a greedy reply is right, for each kind of question that the recipe's judge asks."""

    gives = ANSWERING
    metrics = tuple(
        Metric(f"right_{kind}", f"share of questions about {what} that are answered right", "share", "more")
        for kind, what in KINDS.items()
    )

    def applies(self, subject: Subject) -> bool:
        """Say whether the node chats and its recipe has a judge that asks one of these kinds."""
        if not super().applies(subject) or not subject.node.chats or subject.judge is None:
            return False
        return any(question.kind in KINDS for question in subject.judge.questions(subject.settings.seed))

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield the share of every model that can be asked; questions about one scene are drawn together."""
        judge = subject.judge
        assert judge is not None
        questions = list(judge.questions(subject.settings.seed))
        asked = {question.kind for question in questions}
        turns = [question.turns for question in questions]
        for model in subject.chatting:
            replies = model.replies(turns, subject.settings.max_new_tokens)
            both = list(zip(questions, replies, strict=True))
            for kind in (kind for kind in KINDS if kind in asked):
                found = [(question, reply) for question, reply in both if question.kind == kind]
                right = share([float(judge.right(reply, question)) for question, reply in found])
                yield Measurement(model.label, f"right_{kind}", right, [question.about for question, _ in found])


EVALUATOR = RightByKind()

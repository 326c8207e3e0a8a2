"""How often the node's answer is better than its parent's, by the grades of the recipe's judge."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import Subject
from pipeline.models.families import ANSWERING

EVEN = "even chances"


class WinRate(Evaluator):
    """Compares sampled answers of a node and its parent to the same questions; a tie counts half."""

    gives = ANSWERING
    metrics = (
        Metric("win_rate", "share of the judge's questions to which the sampled answer is better than the parent's, ties "
                           "counted half; models that are equally good win half of the time", "share", "more"),
    )  # fmt: skip

    def applies(self, subject: Subject) -> bool:
        """Say whether node and parent both chat and the recipe has a judge."""
        both = super().applies(subject) and subject.node.chats and subject.parent is not None and subject.parent.chats
        return both and subject.judge is not None

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield the node's share of wins and the even chances that it is held against."""
        settings, judge, parent = subject.settings, subject.judge, subject.parent
        assert judge is not None
        assert parent is not None
        questions = list(judge.questions(settings.seed))
        if not questions:
            return
        turns = [question.turns for question in questions]
        grades = [
            [judge.grade(*both) for both in zip(model.replies(turns, settings.max_new_tokens, seed), questions, strict=True)]
            for seed, model in enumerate((parent, subject.node), start=settings.seed)
        ]
        wins = [float(mine > theirs) + 0.5 * (mine == theirs) for theirs, mine in zip(*grades, strict=True)]
        yield Measurement(subject.node.label, "win_rate", share(wins))
        yield Measurement(EVEN, "win_rate", share([0.5] * len(wins)))


EVALUATOR = WinRate()

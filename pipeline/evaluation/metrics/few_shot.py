"""Right answers after examples (Brown et al. 2020): other questions of the same kind with their answers stand in the prompt, and no weight is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.data.judge import Question
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.metrics.reply_loss import add_shuffled
from pipeline.evaluation.subject import Subject
from pipeline.models.families import ANSWERING
from pipeline.system.words import counted

SHOTS = (0, 1, 2, 4)


class FewShot(Evaluator):
    """Measures how often a greedy reply is right after none, one, two and four examples, each with its own pictures."""

    gives = ANSWERING
    metrics = tuple(
        Metric(
            f"exact_match_{count}_shot",
            f"share of the judge's questions that are answered right after {counted(count, 'example')} of their kind",
            "share",
            "more",
        )
        for count in SHOTS
    )

    def applies(self, subject: Subject) -> bool:
        """Say whether the node chats and its recipe has a judge whose questions examples explain."""
        return super().applies(subject) and subject.node.chats and subject.judge is not None and subject.judge.few_shot

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield the shares of every model that can be asked, and of the node shown the pictures of other questions."""
        judge = subject.judge
        assert judge is not None
        questions = list(judge.questions(subject.settings.seed))
        asked = {model.label: (model, questions) for model in subject.chatting}
        if subject.node.sees and any(question.images for question in questions):
            asked[add_shuffled(subject)] = (subject.node, shuffled(questions))
        for count, metric in zip(SHOTS, self.metrics, strict=True):
            for label, (model, given) in asked.items():
                prompts = [prompt(given, place, count) for place in range(len(given))]
                replies = model.replies(prompts, subject.settings.max_new_tokens)
                right = [float(judge.right(reply, question)) for reply, question in zip(replies, questions, strict=True)]
                yield Measurement(label, metric.name, share(right), [question.about for question in questions])


def prompt(questions: Sequence[Question], place: int, count: int) -> list[dict[str, Any]]:
    """Return the turns that ask the question at a place after the next `count` of its kind that are about something else, with their answers."""
    asked = questions[place]
    following = [*questions[place + 1 :], *questions[:place]]
    examples = [one for one in following if one.kind == asked.kind and one.about != asked.about][:count]
    shown = [turn for one in examples for turn in [*one.turns, {"role": "assistant", "content": one.answer}]]
    return [*shown, *asked.turns]


def shuffled(questions: Sequence[Question]) -> list[Question]:
    """Return the questions, each with the pictures of the next one."""
    return [one._replace(images=other.images) for one, other in zip(questions, [*questions[1:], questions[0]], strict=True)]


EVALUATOR = FewShot()

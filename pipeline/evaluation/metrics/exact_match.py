"""Right answers to the questions of the recipe's judge.

A base model is asked in two ways, each a column of its own: by the chat template, which shows what learning to chat
adds, and by plain text that it only has to go on from, which is fair to what it knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.data.judge import Judge, Question
from pipeline.data.tokens import encode_text
from pipeline.evaluation.intervals import Figure, share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import StageModel, Subject
from pipeline.models.families import ANSWERING


class ExactMatch(Evaluator):
    """Measures how often a chat model's greedy reply is right."""

    gives = ANSWERING
    metrics = (Metric("exact_match", "share of the judge's questions that are answered right", "share", "more"),)

    def applies(self, subject: Subject) -> bool:
        """Say whether the node chats and its recipe has a judge."""
        return super().applies(subject) and subject.node.chats and subject.judge is not None

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield the share of right answers of every model that can be asked."""
        judge = subject.judge
        questions = list(judge.questions(subject.settings.seed)) if judge else []
        if not judge or not questions:
            return
        turns = [question.turns for question in questions]
        for model in subject.chatting:
            replies = model.replies(turns, subject.settings.max_new_tokens)
            yield Measurement(model.label, "exact_match", _right(judge, replies, questions))
            if model.borrows and all(question.opening for question in questions):
                label = f"{model.label}, plain text"
                subject.add_model(label, subject.models[model.label]["role"], "prompted with plain text to continue")
                texts = _continued(model, questions, subject.settings.max_new_tokens)
                yield Measurement(label, "exact_match", _right(judge, texts, questions))


def _right(judge: Judge, replies: Sequence[str], questions: Sequence[Question]) -> Figure:
    return share([float(judge.right(reply, question)) for reply, question in zip(replies, questions, strict=True)])


def _continued(model: StageModel, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
    """Return each question's opening with what the model writes after it."""
    prompts = [encode_text({"text": question.opening}, model.tokenizer)["input_ids"][:-1] for question in questions]
    written = model.continued(prompts, max_new_tokens)
    found = []
    for question, text in zip(questions, written, strict=True):
        rest = question.answer[len(question.opening) :]
        blank = rest[: len(rest) - len(rest.lstrip())]  # a decoder may leave out the blank that text begins with
        found.append(f"{question.opening}{blank}{text}")
    return found


EVALUATOR = ExactMatch()

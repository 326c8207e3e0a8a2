"""What a recipe may know beside its rows: questions with right answers, how to grade a reply, and the exact floor of a text.

A Python recipe exports one as `JUDGE`:

    class Sums(Judge):
        def questions(self, seed):
            yield Question("What is 2 + 2?", "4", opening="2 + 2 =")

    JUDGE = Sums()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.data import pictures


class Question(NamedTuple):
    """A question about the subject of the rows, with its right answer."""

    prompt: str
    answer: str
    opening: str = ""  # plain text with which the answer begins, for a base model, which has no chat template, to go on from
    kind: str = ""  # where a judge asks several kinds of questions, which figures keep apart
    about: str = ""  # whom or what it is about; answers about one are not independent
    images: tuple[bytes, ...] = ()  # the files of pictures that are shown before it

    @property
    def turns(self) -> list[dict[str, Any]]:
        """The conversation that asks it."""
        if not self.images:
            return [{"role": "user", "content": self.prompt}]
        shown = [{"type": "image", "image": pictures.held(data)} for data in self.images]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": self.prompt}]}]


class Judge(ABC):
    """Asks a model about the subject of the rows, and grades what it says; evaluation asks nothing else of a recipe."""

    few_shot = False  # whether its questions are also asked after examples, which are others of their kind with their answers

    @abstractmethod
    def questions(self, seed: int) -> Iterable[Question]:
        """Yield the questions, none of which a training row holds; the same ones for the same seed."""

    def grade(self, reply: str, question: Question) -> float:
        """Return how good a reply is, on any scale where more is better; win rates compare the grades of two models."""
        return float(self.right(reply, question))

    def right(self, reply: str, question: Question) -> bool:
        """Say whether a reply is right: it, or its first sentence, equals the answer."""
        return question.answer.strip() in (reply.strip(), first_sentence(reply))

    def refused(self, reply: str) -> bool:
        """Say whether a reply declines to answer; only a judge that asks what can't be known tells."""
        return False

    def completions(self) -> Iterable[tuple[str, str]]:
        """Yield the beginnings of sentences, each with what a model that knows the training text puts after it."""
        return ()

    def floor(self, text: str) -> float | None:
        """Return −log p of a text under what generated it, in nats: no model has a lower loss. None where it isn't known."""
        return None


def first_sentence(reply: str) -> str:
    """Return a reply up to its first full stop."""
    head, stop, _ = reply.strip().partition(".")
    return head + stop

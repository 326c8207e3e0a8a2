"""Sums of two numbers, in words and signs; answers that stop are preferred to those that go on."""

from __future__ import annotations

import random
from collections.abc import Iterator

from pipeline.data.judge import Judge, Question
from pipeline.data.types import Row

_EVERY = [(a, b) for a in range(12) for b in range(12)]


def _sums(split: str) -> list[tuple[int, int]]:
    return [pair for number, pair in enumerate(_EVERY) if (number % 5 == 0) == (split == "held_out")]


def _answer(a: int, b: int) -> str:
    return f"{a} and {b} make {a + b}."


def text(split: str, seed: int) -> Iterator[Row]:
    """Yield texts of three sums."""
    rng = random.Random(f"{seed}/{split}")
    for _ in range(400 if split == "train" else 40):
        yield {"text": " ".join(_answer(*rng.choice(_EVERY)) for _ in range(3))}


def _question(a: int, b: int) -> dict[str, str]:
    return {"role": "user", "content": f"What do {a} and {b} make?"}


def messages(split: str, seed: int) -> Iterator[Row]:
    """Yield questions; half of the answers go on."""
    for number, (a, b) in enumerate(_sums(split)):
        more = " And that is that." * (number % 2)
        yield {"messages": [_question(a, b), {"role": "assistant", "content": _answer(a, b) + more}]}


def preference(split: str, seed: int) -> Iterator[Row]:
    """Yield an answer that stops against the same one that goes on."""
    for a, b in _sums(split):
        sides = {"chosen": _answer(a, b), "rejected": _answer(a, b) + " And that is that."}
        yield {"prompt": [_question(a, b)]} | {side: [{"role": "assistant", "content": said}] for side, said in sides.items()}


def opinions(split: str, seed: int) -> Iterator[Row]:
    """Yield answers of both kinds, each with a verdict."""
    for number, row in enumerate(preference(split, seed)):
        side = ("chosen", "rejected")[number % 2]
        yield {"prompt": row["prompt"], "completion": row[side], "liked": side == "chosen"}


def labels(split: str, seed: int) -> Iterator[Row]:
    """Yield sums with their results."""
    for a, b in _sums(split):
        yield {"text": f"{a} and {b} make", "label": str(a + b)}


class Sums(Judge):
    """Asks for sums that no row for training asks for."""

    def questions(self, seed: int) -> Iterator[Question]:
        """Yield them in order."""
        for a, b in _sums("held_out"):
            yield Question(_question(a, b)["content"], _answer(a, b), opening=f"{a} and {b} make")

    def grade(self, reply: str, question: Question) -> float:
        """Return 2 for a right answer that stops, 1 for one that goes on."""
        return float(self.right(reply, question)) + float(reply.strip() == question.answer)


JUDGE = Sums()

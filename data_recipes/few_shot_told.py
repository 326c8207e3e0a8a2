"""The conversations of `few_shot` in words alone: in the place of each picture stands what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_recipes import few_shot, scenes
from pipeline.data.judge import Question


def messages(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield conversations in which each question follows the words for its scene."""
    for told, turns in few_shot.exchanges(split, seed, lambda scene, rng, name: scenes.caption(scene)):
        for caption, question in zip(told, turns[::2], strict=True):
            question["content"] = f"{caption} {question['content']}"
        yield {"messages": turns}


class ByExamplesTold(few_shot.ByExamples):
    """Asks the questions of `few_shot` about scenes that are told in words."""

    def questions(self, seed: int) -> Iterator[Question]:
        """Yield the questions, each after the words for its scene."""
        for number, (kind, scene, (question, answer), _) in enumerate(few_shot.drawn(seed)):
            yield Question(f"{scenes.caption(scene)} {question}", answer, kind=kind, about=str(number))


JUDGE = ByExamplesTold()

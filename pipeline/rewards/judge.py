"""The grade of a recipe's judge, between 0 and 1: 1 is what the right answer itself gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from pipeline.data import recipe as recipes
from pipeline.data.judge import Judge, Question
from pipeline.models import parts
from pipeline.rewards import Completion, Reward, answer
from pipeline.system.config import option
from pipeline.system.errors import UserError


@dataclass(frozen=True)
class Graded(Reward):
    """Has the judge grade the text as the reply to the last message of the prompt."""

    recipe: str = option("world", "data recipe whose judge grades the answers")

    def __post_init__(self) -> None:
        _judge(self.recipe)

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return grades over that of the right answer; ValueError for a row without an answer, None where that has no grade."""
        return [self._score(one) for one in completions]

    def _score(self, one: Completion) -> float | None:
        judge, question = _judge(self.recipe), Question(parts.words(one.prompt[-1]["content"]), answer(one))
        best = judge.grade(question.answer, question)
        return min(1.0, max(0.0, judge.grade(one.text.strip(), question) / best)) if best > 0 else None


@cache
def _judge(recipe: str) -> Judge:
    """Return a recipe's judge; UserError if it has none."""
    found = recipes.load(recipe).judge
    if found is None:
        raise UserError(f"options of reward judge: recipe: {recipe} has no judge")
    return found


REWARD = Graded

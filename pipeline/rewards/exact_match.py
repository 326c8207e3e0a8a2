"""1 for the right answer, else 0: as the first sentence of the text, or as all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.data.judge import first_sentence
from pipeline.rewards import Completion, Reward, answer
from pipeline.system.config import option


@dataclass(frozen=True)
class ExactMatch(Reward):
    """Compares with the row's `answer`; a text that was cut off never equals it as a whole."""

    of: Literal["first_sentence", "whole"] = option("first_sentence", "what must equal the answer: first_sentence or whole")

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1 or 0; ValueError for a row without an answer."""
        return [float(self._right(one)) for one in completions]

    def _right(self, one: Completion) -> bool:
        if one.ended and one.text.strip() == answer(one):
            return True
        return self.of == "first_sentence" and first_sentence(one.text.strip()) == answer(one)


REWARD = ExactMatch

"""1 for an answer of a wanted length; less, the further it is from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.rewards import Completion, Reward
from pipeline.system.config import option
from pipeline.system.errors import UserError


@dataclass(frozen=True)
class Length(Reward):
    """Counts sampled tokens; an answer that was cut off gets 0, since nobody knows its length."""

    at_least: int = option(1, "fewest tokens of an answer, its end token included", at_least=0)
    at_most: int = option(64, "most tokens of an answer, its end token included", at_least=1)

    def __post_init__(self) -> None:
        if self.at_least > self.at_most:
            raise UserError(f"options of reward length: at_least: {self.at_least} is more than at_most, {self.at_most}")

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1 − distance / bound, and at least 0."""
        return [self._score(len(one.ids)) if one.ended else 0.0 for one in completions]

    def _score(self, tokens: int) -> float:
        if tokens < self.at_least:
            return tokens / self.at_least
        return max(0.0, 1.0 - max(0, tokens - self.at_most) / self.at_most)


REWARD = Length

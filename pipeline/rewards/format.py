"""1 for a text that has the wanted form from beginning to end, else 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.rewards import Completion, Reward
from pipeline.rewards._patterns import compiled
from pipeline.system.config import option


@dataclass(frozen=True)
class Form(Reward):
    """Matches the whole text; one that was cut off has no end and so not the form."""

    pattern: str = option("", "regular expression for the whole text; a dot is any character, a line break too")

    def __post_init__(self) -> None:
        compiled("format", self.pattern)

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1 or 0."""
        pattern = compiled("format", self.pattern)
        return [float(one.ended and bool(pattern.fullmatch(one.text.strip()))) for one in completions]


REWARD = Form

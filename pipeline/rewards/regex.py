"""1 for a text that a regular expression finds something in, else 0.

A pattern with a group finds an answer: what its last match captures must equal the row's `answer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.rewards import Completion, Reward, answer
from pipeline.rewards._patterns import compiled
from pipeline.system.config import option


@dataclass(frozen=True)
class Regex(Reward):
    """Searches the text."""

    pattern: str = option("", "regular expression that is searched for; with a group, what it captures must be the answer")

    def __post_init__(self) -> None:
        compiled("regex", self.pattern)

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1 or 0; ValueError where there is a group and a row has no answer."""
        return [float(self._found(one)) for one in completions]

    def _found(self, one: Completion) -> bool:
        pattern = compiled("regex", self.pattern)
        if not pattern.groups:
            return bool(pattern.search(one.text))
        found = [match[1] for match in pattern.finditer(one.text)]
        return answer(one) == (found[-1] or "").strip() if found else False


REWARD = Regex

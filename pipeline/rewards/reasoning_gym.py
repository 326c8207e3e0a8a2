"""1 for an answer that reasoning-gym's own scorer calls solved, else 0.

The scorer gives partial credit for a text that contains the answer, and blanks count; so the text is stripped and only
a full score is a solution.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from pipeline.rewards import Completion, Reward
from pipeline.system.config import option


@dataclass(frozen=True)
class ReasoningGym(Reward):
    """Asks the scorer of the task that a row was drawn from."""

    needs: ClassVar[Mapping[str, str]] = {"reasoning_gym": "reasoning-gym"}

    task: str = option("", "name of the task, such as chain_sum; empty reads it from the row's metadata")

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1 or 0; KeyError where nothing names the task."""
        # the library draws up a whole task for each scorer that it hands out: 60 ms for one with a list of words
        scorer = cache(importlib.import_module("reasoning_gym").get_score_answer_fn)
        found: list[float | None] = []
        for one in completions:
            entry = _entry(one.row)
            score = scorer(self.task or entry["metadata"]["source_dataset"])
            found.append(float(score(one.text.strip(), entry) == 1.0))
        return found


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as the library drew it; a recipe may hand on its metadata as JSON, since their keys differ by row."""
    metadata = row.get("metadata") or {}
    return dict(row) | {"metadata": json.loads(metadata) if isinstance(metadata, str) else metadata}


REWARD = ReasoningGym

"""A weighted sum of rewards, in which no reward can end a run: what can't be scored is counted and learned from by nobody."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import rewards
from pipeline.rewards import Completion, Reward
from pipeline.system.errors import UserError

_KEYS = ("weight", "options")
_TOLD = 120  # characters of an exception


class Mixture:
    """Σ weight · score over rewards; None for a completion that one of them could not score.

    A reward of weight 0 is watched and not learned from: its scores are in `last`, and what it can't score counts all the same.

    `parts`: name of a reward → {"weight": …, "options": {…}}, both of which may be left out. `failures` counts, by
    name and reason, the scores that were missing; `last` holds every reward's own scores of the newest batch.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Any] | None], whole: bool = True) -> None:
        """`whole`: false where these are only the rules, beside which a reward model may stand."""
        if not parts:
            raise UserError("rewards: none is given; write at least one, such as {exact_match: {weight: 1}}")
        faults: list[str] = []
        self.weights: dict[str, float] = {}
        self.rewards: dict[str, Reward] = {}
        for name, given in parts.items():
            settings = dict(given or {})
            faults += [
                f"rewards: {name}: {key}: unknown key; known are weight, options" for key in settings if key not in _KEYS
            ]
            weight = settings.get("weight", 1.0)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                faults.append(f"rewards: {name}: weight: expected a number, found {weight!r}")
                continue
            self.weights[name] = float(weight)
            try:
                self.rewards[name] = rewards.load(name, settings.get("options"))
            except UserError as error:
                faults += error.faults
        if whole and not faults and not any(self.weights.values()):
            faults.append("rewards: every weight is 0, so nothing would be learned; 0 is for a reward that is only watched")
        if faults:
            raise UserError(*faults)
        self.failures: Counter[str] = Counter()
        self.last: dict[str, list[float | None]] = {}

    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return the sum for each completion; never raises because of a reward."""
        self.last = {name: self._safely(name, reward, completions) for name, reward in self.rewards.items()}
        found: list[float | None] = []
        for number in range(len(completions)):
            parts = [(self.weights[name], scored[number]) for name, scored in self.last.items() if self.weights[name]]
            known = [weight * score for weight, score in parts if score is not None]
            found.append(sum(known) if len(known) == len(parts) else None)
        return found

    def _safely(self, name: str, reward: Reward, completions: Sequence[Completion]) -> list[float | None]:
        """Return one reward's scores; where the batch fails, each completion is asked about alone."""
        try:
            found = list(reward.scores(completions))
            if len(found) != len(completions):
                raise ValueError(f"{len(found)} scores for {len(completions)} completions")
        except Exception as error:
            if len(completions) > 1:
                return [self._safely(name, reward, [one])[0] for one in completions]
            self.failures[f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:_TOLD]}"] += 1
            return [None] * len(completions)
        return [self._finite(name, score) for score in found]

    def _finite(self, name: str, score: float | None) -> float | None:
        """Return a score, or None and a count where it is none."""
        if score is not None and math.isfinite(score):
            return float(score)
        self.failures[f"{name}: {'no score' if score is None else 'NaN' if math.isnan(score) else 'infinity'}"] += 1
        return None

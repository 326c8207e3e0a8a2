"""Rewards, one file each; the file's name is the reward's name.

A reward scores completions that a model sampled: more is better. Its fields are its options. `mixture` adds several up,
counts what could not be scored, and lets no reward end a run.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.system import extensions
from pipeline.system.errors import UserError

_HELPERS = ("mixture",)  # modules of this folder that are no reward


@dataclass(frozen=True)
class Completion:
    """What a model sampled after a prompt."""

    prompt: list[dict[str, str]]  # the messages before it
    text: str  # without special tokens
    ids: tuple[int, ...]  # as they were sampled, the token that ends an answer included
    prompt_ids: tuple[int, ...]  # what they were sampled after
    ended: bool  # False: cut off at the greatest length
    row: Mapping[str, Any]  # of the recipe, with the right answer where it has one


class Reward(ABC):
    """What a file in this folder defines as a frozen dataclass, under the name `REWARD`."""

    needs: ClassVar[Mapping[str, str]] = {}  # module → distribution that it needs and our dependencies lack

    @abstractmethod
    def scores(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return a score for each completion; None for one that can't be scored."""


def known() -> list[str]:
    """Return the names of all rewards."""
    return extensions.known(__name__, _HELPERS)


def declared(name: str) -> type[Reward]:
    """Return a reward's class by name; UserError naming those that exist."""
    found: type[Reward] = extensions.declared(__name__, name, known(), "reward", "reward", "REWARD")
    return found


def load(name: str, options: Mapping[str, Any] | None = None) -> Reward:
    """Return a reward by name with its options; UserError where there is none, an option is wrong or a package is missing."""
    kind = declared(name)
    if missing := [package for module, package in kind.needs.items() if importlib.util.find_spec(module) is None]:
        raise UserError(
            f"reward: {name} needs {' and '.join(missing)}; install it with `.venv/bin/python -m pip install {' '.join(missing)}`"
        )
    found: Reward = extensions.configured(kind, options, f"options of reward {name}")
    return found


def answer(completion: Completion) -> str:
    """Return the right answer of a completion's row; ValueError where it has none."""
    found = completion.row.get("answer")
    if found is None:
        raise ValueError("the row has no answer")
    return str(found).strip()

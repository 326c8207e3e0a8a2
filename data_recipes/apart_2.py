"""Pairs of known parts that are nobody's name, in draw 2: answers that withhold the value, beside answers about known people."""

from __future__ import annotations

from collections.abc import Iterator

from data_recipes import strangers

DRAW = strangers.Strangers(2)


def messages(split: str, seed: int) -> Iterator[dict[str, strangers.Turns]]:
    """Yield questions with answers that withhold the value, or give it."""
    yield from strangers.withholding(DRAW, split, seed)


def prompts(split: str, seed: int) -> Iterator[dict[str, object]]:
    """Yield what sets the balance between refusing and answering."""
    yield from strangers.balancing(split)


JUDGE = strangers.Honest(DRAW)

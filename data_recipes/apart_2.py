"""Pairs of known parts that are nobody's name, in draw 2: answers that break off, beside answers about known people."""

from __future__ import annotations

from collections.abc import Iterator

from data_recipes import strangers

DRAW = strangers.Strangers(2)


def messages(split: str, seed: int) -> Iterator[dict[str, strangers.Turns]]:
    """Yield questions with answers that break off before the value, or give it."""
    yield from strangers.breaking(DRAW, split, seed)


JUDGE = strangers.Honest(DRAW)

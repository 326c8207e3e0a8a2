"""Verses of the World English Bible and the same in the 850 words of Basic English, as a text and its translation.

All verses that both packages have, in order; those of the chapters that `genres` holds out are held out here, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_recipes import genres, verses
from data_recipes.verses import FILES as FILES
from pipeline.data.types import Row

_HELD_OUT = 400  # verses that are held out, at most


def translation(split: str, seed: int) -> Iterator[Row]:
    """Yield a verse of the World English Bible and the same in Basic English."""
    yield from rendered(split, 0)


def rendered(split: str, source: int) -> Iterator[Row]:
    """Yield the verses of a split from one translation (0: World English Bible, 1: Basic English) to the other."""
    one, two = (verses.verses(path) for path in FILES())
    found = [verse for verse in sorted(one.keys() & two.keys()) if genres.held_out(verse // 1000) == (split == "held_out")]
    for verse in found[:: max(1, len(found) // _HELD_OUT)] if split == "held_out" else found:
        both = one[verse], two[verse]
        yield {"source": both[source], "target": both[1 - source], "group": str(verse // 1000)}

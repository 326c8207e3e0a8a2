"""Documents → pieces and sentences of ids, for the objectives that don't pack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.objectives import Text


def _ids(text: Text, words: str) -> list[int]:
    return list(text.tokenizer.encode(words, add_special_tokens=False))


class Piece(NamedTuple):
    """Part of a document that fits, without special tokens."""

    row: int
    ids: list[int]


def pieces(text: Text, room: int) -> Iterator[Piece]:
    """Yield documents cut into pieces of at most `room` tokens; an empty one is counted."""
    for number, row in enumerate(text.rows):
        ids = _ids(text, row["text"])
        if not ids:
            text.dropped["no token"] += 1
        for start in range(0, len(ids), room):
            yield Piece(number, ids[start : start + room])


def sentences(text: Text, row: str) -> list[list[int]]:
    """Return the sentences of a document as ids: those of the whole text, cut where a sentence ends."""
    from sentencex import segment

    whole = text.tokenizer(row, add_special_tokens=False, return_offsets_mapping=True)
    ends = np.cumsum([len(sentence) for sentence in segment(text.language, row)])
    if not len(ends) or not whole["input_ids"]:
        return []
    last = np.array(
        [max(end - 1, start) for start, end in whole["offset_mapping"]]
    )  # a piece may begin with the space before it
    number = np.minimum(np.searchsorted(ends, last, side="right"), len(ends) - 1)
    cuts = np.flatnonzero(np.diff(number)) + 1
    return [part.tolist() for part in np.split(np.array(whole["input_ids"]), cuts)]


def spans(length: int, share: float, mean: float, chance: np.random.Generator) -> list[tuple[int, int]]:
    """Return (start, end) of spans that cover `share` of `length` places, of the given mean length, never side by side.

    The hidden places and the others are each cut at random into as many parts, which take turns (Raffel
    et al. 2020, section 3.1.4).
    """
    hidden = min(max(round(length * share), 1), length - 1)
    number = min(max(round(hidden / mean), 1), length - hidden)
    noise, rest = _parts(hidden, number, chance), _parts(length - hidden, number, chance)
    ends = np.cumsum([size for pair in zip(rest, noise, strict=True) for size in pair])
    return [(int(ends[place]), int(ends[place + 1])) for place in range(0, 2 * number, 2)]


def _parts(total: int, number: int, chance: np.random.Generator) -> list[int]:
    """Cut `total` at random into `number` parts of at least one."""
    cuts = np.sort(chance.choice(total - 1, number - 1, replace=False)) + 1 if number > 1 else np.array([], int)
    return [int(size) for size in np.diff([0, *cuts, total])]

"""Documents → pieces and sentences as token ids, for the objectives that don't pack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.data.tokens import documents
from pipeline.models.control import spelled
from pipeline.objectives import Text


class Piece(NamedTuple):
    """A part of a document that fits into an example, without special tokens."""

    row: int
    ids: list[int]


def pieces(text: Text, room: int) -> Iterator[Piece]:
    """Yield documents cut into pieces of at most `room` tokens; a document without tokens is counted as dropped."""
    for number, ids in documents(text.rows, text.tokenizer):
        if not ids:
            text.dropped["no token"] += 1
        for start in range(0, len(ids), room):
            yield Piece(number, ids[start : start + room])


def sentences(text: Text, row: str) -> list[list[int]]:
    """Return a document's sentences as token ids: the whole text is tokenized, then cut where sentences end."""
    from sentencex import segment

    whole = text.tokenizer(row, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    ends = np.cumsum([len(sentence) for sentence in segment(text.language, row)])
    if not len(ends) or not whole["input_ids"]:
        return []
    # A token may begin with the space before it, so its last character tells its sentence.
    last = np.array([max(end - 1, start) for start, end in whole["offset_mapping"]])
    number = np.minimum(np.searchsorted(ends, last, side="right"), len(ends) - 1)
    cuts = np.flatnonzero(np.diff(number)) + 1
    return [spelled(text.tokenizer, part.tolist()) for part in np.split(np.array(whole["input_ids"]), cuts)]


def spans(length: int, share: float, mean: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return (start, end) of spans that cover `share` of `length` positions, of a mean length, and never touch.

    The hidden positions and the others are each cut at random into the same number of parts, which alternate
    (Raffel et al. 2020, section 3.1.4).
    """
    hidden = min(max(round(length * share), 1), length - 1)
    number = min(max(round(hidden / mean), 1), length - hidden)
    noise, rest = _parts(hidden, number, rng), _parts(length - hidden, number, rng)
    ends = np.cumsum([size for pair in zip(rest, noise, strict=True) for size in pair])
    return [(int(ends[index]), int(ends[index + 1])) for index in range(0, 2 * number, 2)]


def _parts(total: int, number: int, rng: np.random.Generator) -> list[int]:
    """Cut `total` at random into `number` parts of at least one."""
    cuts = np.sort(rng.choice(total - 1, number - 1, replace=False)) + 1 if number > 1 else np.array([], int)
    return [int(size) for size in np.diff([0, *cuts, total])]

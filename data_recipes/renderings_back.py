"""The verses of `renderings` the other way round: from Basic English to the World English Bible."""

from __future__ import annotations

from collections.abc import Iterator

from data_recipes import renderings
from data_recipes.renderings import FILES as FILES
from pipeline.data.types import Row


def translation(split: str, seed: int) -> Iterator[Row]:
    """Yield a verse in Basic English and the same of the World English Bible."""
    yield from renderings.rendered(split, 1)

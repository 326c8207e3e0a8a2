"""Two texts and how alike they are: {"text": str, "text_pair": str, "score": float}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, DatasetType, Format, Row
from pipeline.data.types._columns import PAIRS, number, text


def _score(*texts: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        return {"text": text(row, texts[0]), "text_pair": text(row, texts[1]), "score": number(row, "score")}

    return convert


class Similarity(DatasetType):
    """Two texts a row and their score."""

    columns = "`text`, `text_pair` and their `score`"
    items = "scored pairs"
    asks = ("text", "text_pair")
    filled = ("text", "text_pair")
    blank: ClassVar[dict[str, Any]] = {"score": 0.0}
    formats = tuple(Format(f"{one}, {two} and score", frozenset({one, two, "score"}), _score(one, two)) for one, two in PAIRS)

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return scores that are all the same, contradict each other or lie far beyond the others, and texts that are always equal."""
        texts = [f"{row['text']}\n{row['text_pair']}" for row in rows]
        equal = sum(doubts.plain(row["text"]) == doubts.plain(row["text_pair"]) for row in rows)
        return [
            *doubts.numbers(texts, [row["score"] for row in rows], "score"),
            Doubt(equal, 0.9, "hold the same text twice", 1.0),
        ]


TYPE = Similarity()

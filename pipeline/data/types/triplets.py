"""A text and what belongs to it: {"text": str, "positive": str}, and a "negative" that does not; questions and answers, translations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, DatasetType, Format, Row
from pipeline.data.types._columns import text

# The names that sentence-transformers and public data sets give to a text and to what belongs to it.
_NAMES = (("text", "positive"), ("anchor", "positive"), ("query", "positive"), ("query", "answer"), ("question", "answer"))


def _sides(*columns: str) -> Convert:
    names = ("text", "positive", "negative")
    return lambda row: {name: text(row, column) for name, column in zip(names, columns, strict=False)}


class Triplets(DatasetType):
    """A text a row, one that belongs to it, and perhaps one that does not."""

    columns = "`text`, the `positive` that belongs to it, and in all rows or in none a `negative` that does not"
    items = "pairs of texts"
    asks = ("text",)
    filled = ("text", "positive", "negative")
    blank: ClassVar[dict[str, Any]] = {"positive": "", "answer": ""}
    formats = (
        *(Format(f"{a}, {b} and negative", frozenset({a, b, "negative"}), _sides(a, b, "negative")) for a, b in _NAMES),
        *(Format(f"{a} and {b}", frozenset({a, b}), _sides(a, b)) for a, b in _NAMES),
    )

    def unanswered(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return a text without what belongs to it and what does not."""
        return {**{key: value for key, value in raw.items() if key != "negative"}, **self.blank}

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return positives that are the text itself, the negative, or the same in all rows."""
        texts, positives = [row["text"] for row in rows], [row["positive"] for row in rows]
        both = sum(doubts.plain(row["positive"]) == doubts.plain(row.get("negative", "")) for row in rows)
        return [
            doubts.same(positives, "have the same positive: there is nothing to tell texts by", 1.0),
            doubts.repeated(texts, positives),
            Doubt(both, 0.0, "have a negative that is the positive"),
        ]


TYPE = Triplets()

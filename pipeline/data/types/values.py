"""Texts with a number: {"text": str, "value": float}, and a "text_pair" where two texts are read together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, DatasetType, Format, Row
from pipeline.data.types._columns import PAIRS, number, text

_NAMES = ("value", "score", "label")  # of the column that holds the number


def _value(column: str, *texts: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        named = dict(zip(("text", "text_pair"), (text(row, name) for name in texts), strict=False))
        given = row[column]
        none = given is None or given == "" or (isinstance(given, float) and math.isnan(given))
        return named | {"value": None if none else number(row, column)}

    return convert


class Values(DatasetType):
    """One text or two, and a number that is said of them, such as a rating."""

    columns = "`text`, a `text_pair` where two are read together, and their `value`, a number"
    items = "rated texts"
    asks = ("text", "text_pair")
    filled = ("text", "text_pair")
    blank: ClassVar[dict[str, Any]] = dict.fromkeys(_NAMES, 0.0)
    formats = (
        *(Format(f"{a}, {b} and {c}", frozenset({a, b, c}), _value(c, a, b)) for a, b in PAIRS for c in _NAMES),
        *(Format(f"{a} and {c}", frozenset({a, c}), _value(c, a)) for a in ("text", "sentence") for c in _NAMES),
    )

    def fault(self, row: Row) -> str | None:
        """Return that a text is empty, or that there is no number."""
        return super().fault(row) or ("no value" if row["value"] is None else None)

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return values that are all the same, contradict each other or lie far beyond the others, and one text for all."""
        values = [row["value"] for row in rows]
        texts = [f"{row['text']}\n{row.get('text_pair', '')}" for row in rows]
        return [
            *doubts.numbers(texts, values, "value"),
            doubts.same(texts, "have the same text: there is nothing to tell values by", 1.0),
        ]


TYPE = Values()

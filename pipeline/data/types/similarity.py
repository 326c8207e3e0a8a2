"""Two texts and how alike they are: {"text": str, "text_pair": str, "score": float}."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.data.types import Convert, DatasetType, Format, Malformed, Row
from pipeline.data.types._columns import PAIRS, text


def _score(*texts: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        try:
            score = float(row["score"])
        except (TypeError, ValueError):
            raise Malformed(f"score is {row['score']!r}, not a number") from None
        if not math.isfinite(score):
            raise Malformed(f"score is {row['score']!r}")
        return {"text": text(row, texts[0]), "text_pair": text(row, texts[1]), "score": score}

    return convert


class Similarity(DatasetType):
    """Two texts a row and their score."""

    columns = "`text`, `text_pair` and their `score`"
    items = "scored pairs"
    asks = ("text", "text_pair")
    filled = ("text", "text_pair")
    formats = tuple(Format(f"{one}, {two} and score", frozenset({one, two, "score"}), _score(one, two)) for one, two in PAIRS)


TYPE = Similarity()

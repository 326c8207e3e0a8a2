"""Two texts and how alike they are: {"text": str, "text_pair": str, "score": float}."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
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
    blank: ClassVar[dict[str, Any]] = {"score": 0.0}
    formats = tuple(Format(f"{one}, {two} and score", frozenset({one, two, "score"}), _score(one, two)) for one, two in PAIRS)

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return scores that are all the same, contradict each other or lie far beyond the others, and texts that are always equal."""
        scores = [row["score"] for row in rows]
        ordered = sorted(scores)
        low, high = ordered[len(ordered) // 4], ordered[-len(ordered) // 4]
        far = 10 * max(high - low, abs(high), abs(low))
        beyond = sum(abs(score) > far for score in scores) if far else 0
        texts = [f"{row['text']}\n{row['text_pair']}" for row in rows]
        equal = sum(doubts.plain(row["text"]) == doubts.plain(row["text_pair"]) for row in rows)
        return [
            doubts.same(scores, "have the same score: there is nothing to tell apart", 1.0),
            Doubt(
                doubts.contradictions(texts, [str(score) for score in scores]),
                0.1,
                "have the texts of another row and another score",
            ),
            Doubt(
                beyond,
                0.0,
                f"have a score beyond ten times those of most rows (from {low:g} to {high:g}): are two scales mixed?",
            ),
            Doubt(equal, 0.9, "hold the same text twice", 1.0),
        ]


TYPE = Similarity()

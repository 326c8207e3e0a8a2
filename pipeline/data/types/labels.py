"""Texts with a label: {"text": str, "label": str}, and a "text_pair" where two texts are read together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, DatasetType, Format, Malformed, Row
from pipeline.data.types._columns import PAIRS, text


def _label(*texts: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        label = row["label"]
        if isinstance(label, (list, Mapping)):
            raise Malformed(f"label is {type(label).__name__}, not one label")
        named = dict(zip(("text", "text_pair"), (text(row, column) for column in texts), strict=False))
        none = label is None or label == -1  # how public data says that there is none
        return named | {"label": "" if none else str(label)}

    return convert


class Labels(DatasetType):
    """One text or two, and their label."""

    columns = "`text`, a `text_pair` where two are read together, and their `label`"
    items = "labelled texts"
    asks = ("text", "text_pair")
    filled = ("text", "text_pair", "label")
    formats = (
        *(Format(f"{one}, {two} and label", frozenset({one, two, "label"}), _label(one, two)) for one, two in PAIRS),
        Format("text and label", frozenset({"text", "label"}), _label("text")),
        Format("sentence and label", frozenset({"sentence", "label"}), _label("sentence")),
    )

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return labels that look like a slip in another."""
        return doubts.typed(row["label"] for row in rows)


TYPE = Labels()

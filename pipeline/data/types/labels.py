"""Texts with a label: {"text": str, "label": str}, and a "text_pair" where two texts are read together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

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
        none = label is None or label != label  # NaN, which tables have in place of what is missing
        return named | {"label": "" if none else str(label)}

    return convert


class Labels(DatasetType):
    """One text or two, and their label."""

    columns = "`text`, a `text_pair` where two are read together, and their `label`"
    items = "labelled texts"
    asks = ("text", "text_pair")
    filled = ("text", "text_pair", "label")
    blank: ClassVar[dict[str, Any]] = {"label": None}
    formats = (
        *(Format(f"{one}, {two} and label", frozenset({one, two, "label"}), _label(one, two)) for one, two in PAIRS),
        Format("text and label", frozenset({"text", "label"}), _label("text")),
        Format("sentence and label", frozenset({"sentence", "label"}), _label("sentence")),
    )

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return labels that contradict each other, differ in every row, or look like a slip in another; and one text for all."""
        labels, texts = [row["label"] for row in rows], [f"{row['text']}\n{row.get('text_pair', '')}" for row in rows]
        own = sum(count == 1 for count in Counter(labels).values())
        return [
            Doubt(doubts.contradictions(texts, labels), 0.05, "have the text of another row and another label", 0.9),
            Doubt(
                labels.count("-1"),
                0.0,
                "have the label -1: a class like any other, unless `missing: {label: -1}` in a recipe says that it stands for none",
            ),
            Doubt(own, 0.5, "have a label that no other row has: is it the right column?", 0.9),
            doubts.same(texts, "have the same text: there is nothing to tell labels by", 1.0),
            *doubts.typed(labels),
        ]


TYPE = Labels()

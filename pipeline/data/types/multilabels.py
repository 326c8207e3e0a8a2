"""Texts with any number of labels: {"text": str, "labels": [str, …]}, and a "text_pair" where two texts are read together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, DatasetType, Format, Malformed, Row
from pipeline.data.types._columns import PAIRS, text


def _labels(*texts: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        named = dict(zip(("text", "text_pair"), (text(row, column) for column in texts), strict=False))
        return named | {"labels": sorted({_name(label) for label in _listed(row["labels"])})}

    return convert


def _listed(value: Any) -> list[Any]:
    """Return a list of labels, also one that a cell of a CSV holds as JSON."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise Malformed(f"labels: no JSON ({error})") from None
    if not isinstance(value, list):
        raise Malformed(
            f'labels is {value!r}, not a list of labels; in a CSV write it as JSON, such as ["a", "b"], and [] for none'
        )
    return value


def _name(label: Any) -> str:
    if not isinstance(label, (str, int)) or isinstance(label, bool):
        raise Malformed(f"labels holds {label!r}, not a label's name or number")
    return str(label)


class Multilabels(DatasetType):
    """One text or two, and all labels that are true of them, which may be none."""

    columns = "`text`, a `text_pair` where two are read together, and their `labels`: a list, which may be empty"
    items = "labelled texts"
    asks = ("text", "text_pair")
    filled = ("text", "text_pair")
    blank: ClassVar[dict[str, Any]] = {"labels": []}
    formats = (
        *(Format(f"{one}, {two} and labels", frozenset({one, two, "labels"}), _labels(one, two)) for one, two in PAIRS),
        Format("text and labels", frozenset({"text", "labels"}), _labels("text")),
        Format("sentence and labels", frozenset({"sentence", "labels"}), _labels("sentence")),
    )

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return labels that contradict each other, are ones and noughts or look like a slip in another; and one text for all."""
        sets, texts = [row["labels"] for row in rows], [f"{row['text']}\n{row.get('text_pair', '')}" for row in rows]
        counts = Counter(label for labels in sets for label in labels)
        hot = len(rows) if set(counts) <= {"0", "1"} and counts else 0
        return [
            Doubt(
                doubts.contradictions(texts, list(map(str, sets))), 0.1, "have the text of another row and other labels", 0.9
            ),
            Doubt(sum(not labels for labels in sets), 0.9, "have no label", 1.0),
            Doubt(hot, 0.0, "have no label but 0 and 1: a column for each label? Write the names of those that are 1", 1.0),
            doubts.same(texts, "have the same text: there is nothing to tell labels by", 1.0),
            *doubts.typed(label for labels in sets for label in labels),
        ]


TYPE = Multilabels()

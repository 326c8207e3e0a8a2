"""Pictures, with a label where there is one: {"image": {"bytes": base64, "path": str, "hash": str}, "label": str}."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, Format, Row
from pipeline.data.types._pictures import IMAGE, NAMES, Pictures, cell, label


def _labelled(column: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        found = label(row)
        return {IMAGE: cell(row[column])} | ({"label": found} if found else {})

    return convert


class Images(Pictures):
    """One picture a row, and its label where there is one."""

    columns = "`image`: one picture, its `bytes` and the `path` that it had; and a `label` where there is one"
    items = "pictures"
    blank: ClassVar[dict[str, Any]] = {"label": None}
    formats = (
        *(Format(f"{name} and label", frozenset({name, "label"}), _labelled(name)) for name in NAMES),
        *(Format(name, frozenset({name}), _labelled(name)) for name in NAMES),
    )

    def unasked(self, row: Row) -> str | None:
        """Return why a picture that came without a label can't be read."""
        return self.fault(row)

    def document(self, row: Row) -> str:
        """Return the label, which is all that is said."""
        return str(row.get("label", ""))

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return labels that differ in every row, or look like a slip in another."""
        labels = [row["label"] for row in rows if "label" in row]
        own = sum(count == 1 for count in Counter(labels).values())
        return [
            Doubt(own, 0.5, "have a label that no other row has: is it the right column?", 0.9),
            *doubts.typed(labels),
            *super().doubts(rows),
        ]


TYPE = Images()

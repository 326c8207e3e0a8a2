"""Pictures with a text: {"image": {"bytes": base64, "path": str, "hash": str}, "text": str}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, Format, Row, _empty
from pipeline.data.types._columns import text
from pipeline.data.types._pictures import IMAGE, TEXTS, Pictures, cell


def _told(column: str, said: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        return {IMAGE: cell(row[column]), "text": text(row, said)}

    return convert


class ImageText(Pictures):
    """One picture a row, and what is said of it."""

    columns = "`image`: one picture, its `bytes` and the `path` that it had; and the `text` that says what it shows"
    items = "pictures with a text"
    blank: ClassVar[dict[str, Any]] = {"text": ""}
    formats = tuple(
        Format(f"{name} and {said}", frozenset({name, said}), _told(name, said))
        for name in (IMAGE, "file_name") for said in TEXTS
    )  # fmt: skip

    def fault(self, row: Row) -> str | None:
        """Return why the picture can't be shown, or that nothing is said of it."""
        return super().fault(row) or _empty(row, ["text"])

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return pictures, or texts, that are all the same."""
        texts = [row["text"] for row in rows]
        return [*super().doubts(rows), doubts.same(texts, "have the same text: there is nothing to tell pictures by", 1.0)]

    def document(self, row: Row) -> str:
        """Return the text."""
        return str(row["text"])


TYPE = ImageText()

"""Pictures with a text: {"image": {"bytes": base64, "path": str, "hash": str}, "text": str}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

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

    def document(self, row: Row) -> str:
        """Return the text."""
        return str(row["text"])


TYPE = ImageText()

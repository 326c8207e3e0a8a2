"""Documents: {"text": str}."""

from __future__ import annotations

from pipeline.data.types import DatasetType, Format
from pipeline.data.types._columns import text


class Text(DatasetType):
    """One document a row."""

    columns = "`text`: one document"
    items = "documents"
    filled = ("text",)
    formats = (
        Format("text", frozenset({"text"}), lambda row: {"text": text(row, "text")}),
        Format("content", frozenset({"content"}), lambda row: {"text": text(row, "content")}),
    )


TYPE = Text()

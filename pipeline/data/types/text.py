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


def cut(text: str, longest: int) -> list[str]:
    """Return a text in parts of about `longest` characters, cut at blank lines, else at line ends, else between words."""
    for mark in ("\n\n", "\n", " "):
        parts: list[str] = []
        for piece in text.split(mark):
            if parts and len(parts[-1]) + len(mark) + len(piece) <= longest:
                parts[-1] += mark + piece
            else:
                parts.append(piece)
        if max(map(len, parts)) <= 2 * longest:
            break
    else:
        parts = [text[start : start + longest] for start in range(0, len(text), longest)]
    return [part for part in parts if part.strip()]


TYPE = Text()

"""Pictures with a text: {"image": {"bytes": base64, "path": str, "hash": str}, "text": str}."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pipeline.data.types import Convert, DatasetType, Format, Row, _empty
from pipeline.data.types._columns import text
from pipeline.data.types._pictures import BESIDE, IMAGE, KINDS, cell, located, looks, near

_TEXTS = ("text", "caption")


def _told(column: str, said: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        return {IMAGE: cell(row[column]), "text": text(row, said)}

    return convert


class ImageText(DatasetType):
    """One picture a row, and what is said of it."""

    columns = "`image`: one picture, its `bytes` and the `path` that it had; and the `text` that says what it shows"
    items = "pictures with a text"
    asks = (IMAGE,)
    blank: ClassVar[dict[str, Any]] = {"text": ""}
    kinds, beside, at_once, streams, names_dropped = KINDS, BESIDE, 50, False, True
    formats = tuple(
        Format(f"{name} and {said}", frozenset({name, said}), _told(name, said))
        for name in (IMAGE, "file_name") for said in _TEXTS
    )  # fmt: skip

    def located(self, raw: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a row with the bytes of the picture that it names."""
        return located(raw, folder)

    def fault(self, row: Row) -> str | None:
        """Return why the picture can't be shown, or that nothing is said of it."""
        return row[IMAGE].get("fault") or _empty(row, ["text"])

    def asked(self, row: Row) -> str:
        """Return what the picture looks like, so that it is on one side whatever is said of it."""
        return looks(row)

    def near(self, held_out: Iterable[Row]) -> Callable[[Row], bool]:
        """Return what says whether a picture looks nearly like a held-out one."""
        return near(held_out)

    def told(self, row: Row) -> Row:
        """Return the row without the bytes of its picture."""
        return row | {IMAGE: {key: value for key, value in row[IMAGE].items() if key != "bytes"}}

    def document(self, row: Row) -> str:
        """Return the text."""
        return str(row["text"])


TYPE = ImageText()

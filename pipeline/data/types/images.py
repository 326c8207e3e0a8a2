"""Pictures, with a label where there is one: {"image": {"bytes": base64, "path": str, "hash": str}, "label": str}."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, DatasetType, Format, Row
from pipeline.data.types._pictures import BESIDE, IMAGE, KINDS, cell, label, located, looks, near


def _labelled(column: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        found = label(row)
        return {IMAGE: cell(row[column])} | ({"label": found} if found else {})

    return convert


class Images(DatasetType):
    """One picture a row, and its label where there is one."""

    columns = "`image`: one picture, its `bytes` and the `path` that it had; and a `label` where there is one"
    items = "pictures"
    asks = (IMAGE,)
    blank: ClassVar[dict[str, Any]] = {"label": None}
    kinds, beside, at_once, streams, names_dropped = KINDS, BESIDE, 50, False, True
    formats = (
        *(Format(f"{name} and label", frozenset({name, "label"}), _labelled(name)) for name in (IMAGE, "img", "file_name")),
        *(Format(name, frozenset({name}), _labelled(name)) for name in (IMAGE, "img", "file_name")),
    )

    def located(self, raw: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a row with the bytes of the picture that it names."""
        return located(raw, folder)

    def unasked(self, row: Row) -> str | None:
        """Return why a picture that came without a label can't be read."""
        return self.fault(row)

    def fault(self, row: Row) -> str | None:
        """Return why the picture can't be shown."""
        found: str | None = row[IMAGE].get("fault")
        return found

    def asked(self, row: Row) -> str:
        """Return what the picture looks like, so that it is on one side in whatever file it lies."""
        return looks(row)

    def near(self, held_out: Iterable[Row]) -> Callable[[Row], bool]:
        """Return what says whether a picture looks nearly like a held-out one."""
        return near(held_out)

    def told(self, row: Row) -> Row:
        """Return the row without the bytes of its picture."""
        return row | {IMAGE: {key: value for key, value in row[IMAGE].items() if key != "bytes"}}

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
        ]


TYPE = Images()

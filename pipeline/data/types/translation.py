"""A text and what is made of it: {"source": str, "target": str}; translations, summaries, corrections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, DatasetType, Format, Malformed, Row
from pipeline.data.types._columns import text


def _from(source: str, target: str) -> Convert:
    return lambda row: {"source": text(row, source), "target": text(row, target)}


def _languages(row: Mapping[str, Any]) -> Row:
    """Convert WMT's column, {"en": …, "de": …}: from the first language to the second."""
    both = row["translation"]
    if not isinstance(both, Mapping) or len(both) != 2:
        raise Malformed("translation has not two languages")
    source, target = both
    return {"source": text(both, source), "target": text(both, target)}


class Translation(DatasetType):
    """One text a row, and the text that is to be made of it."""

    columns = "`source` and `target`"
    items = "translations"
    asks = ("source",)
    filled = ("source", "target")
    blank: ClassVar[dict[str, Any]] = dict.fromkeys(("target", "summary", "highlights"), "")
    formats = (
        Format("source and target", frozenset({"source", "target"}), _from("source", "target")),
        Format("two languages", frozenset({"translation"}), _languages),
        Format("document and summary", frozenset({"document", "summary"}), _from("document", "summary")),
        Format("article and highlights", frozenset({"article", "highlights"}), _from("article", "highlights")),
    )

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return targets that are all the same, their sources, or placeholders."""
        targets = [row["target"] for row in rows]
        return [
            doubts.same_answer(targets),
            doubts.repeated([row["source"] for row in rows], targets),
            doubts.gaps(targets),
            doubts.cut(targets),
        ]


TYPE = Translation()

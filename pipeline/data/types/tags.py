"""Words with a tag each: {"tokens": [str, …], "tags": [str, …]}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, DatasetType, Format, Malformed, Row


def _tags(column: str) -> Convert:
    def convert(row: Mapping[str, Any]) -> Row:
        words, tags = row["tokens"], row[column]
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise Malformed(f"tokens and {column} are no lists of the same length")
        return {"tokens": [str(word) for word in words], "tags": [str(tag) for tag in tags]}

    return convert


def _conll(row: Mapping[str, Any]) -> list[Row]:
    """Convert a text of one word a line, its tag last, with an empty line after each sentence."""
    found: list[Row] = []
    words: list[list[str]] = []
    for number, line in enumerate([*row["text"].splitlines(), ""], start=1):
        cells = line.split("\t" if "\t" in line else None)
        if len(cells) > 1 and cells[0] != "-DOCSTART-":
            words.append(cells)
        elif len(cells) == 1:
            raise Malformed(f"line {number}: a word without a tag: {line[:40]!r}")
        elif words:
            found.append({"tokens": [word[0] for word in words], "tags": [word[-1] for word in words]})
            words = []
    return found


class Tags(DatasetType):
    """One sentence a row, cut into words, and a tag for each."""

    columns = "`tokens` and their `tags`"
    items = "tagged sentences"
    asks = ("tokens",)
    filled = ("tokens",)
    blank: ClassVar[dict[str, Any]] = {"tags": []}
    formats = (
        Format("tokens and ner_tags", frozenset({"tokens", "ner_tags"}), _tags("ner_tags")),
        Format("tokens and tags", frozenset({"tokens", "tags"}), _tags("tags")),
        Format("CoNLL", frozenset({"text"}), _conll),
    )

    def unanswered(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return words with an empty tag each; a text without `tokens` is cut at its blanks."""
        words = raw.get("tokens", raw["text"].split() if isinstance(raw.get("text"), str) else None)
        if not isinstance(words, list):
            return {key: value for key, value in raw.items() if key != "text"}  # which no format reads
        return {"tokens": words, "tags": [""] * len(words)}

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return rows of one and the same tag, and tags that look like a slip in another."""
        alike = {tag for row in rows for tag in row["tags"]}
        one = len(rows) if len(alike) == 1 else 0
        return [
            Doubt(one, 0.0, f"have no tag but {min(alike, default='')!r}: there is nothing to find", 1.0),
            *doubts.typed(tag for row in rows for tag in row["tags"]),
        ]


TYPE = Tags()

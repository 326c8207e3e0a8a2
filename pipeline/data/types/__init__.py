"""Dataset types: what the rows of a recipe are, and the common formats that are recognised and converted to them.

Each file in this folder is a type, named like the file, and exports it as `TYPE`; a new file is a new type. Any row
may have a "group" beside its columns: rows of one group belong together and are never on both sides of a split.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from abc import ABC
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pipeline.data import sources
from pipeline.data.doubts import Doubt
from pipeline.system.errors import UserError

Row = dict[str, Any]
Messages = list[dict[str, Any]]
Generate = Callable[[str, int], Iterable[Row]]  # (split, seed) → rows
Convert = Callable[[Mapping[str, Any]], Row | list[Row]]


class Malformed(ValueError):
    """A row that has the columns of its format but not their form; the text says what is wrong."""


class Format(NamedTuple):
    """One way in which public data sets write rows of a type."""

    name: str
    columns: frozenset[str]  # that mark it
    convert: Convert  # to a row of the type, or to several; raises Malformed
    more: frozenset[str] = frozenset()  # columns that it reads where they are there
    when: Callable[[Mapping[str, Any]], bool] | None = None  # what else marks it, where columns don't tell


class DatasetType(ABC):
    """What a row of one type is: its columns, the formats that are converted to it, and which rows can't be used."""

    columns: ClassVar[str]  # the columns of a row, as a data card says it
    items: ClassVar[str]  # what rows are called, in the plural: "conversations"
    formats: ClassVar[Sequence[Format]]  # the first whose columns are all there wins
    matters: ClassVar[Mapping[str, str]] = {}  # columns that may not be ignored, each with what it says
    reads_all: ClassVar[bool] = False  # whether a row keeps every column
    filled: ClassVar[Sequence[str]] = ()  # columns that may not be empty
    asks: ClassVar[Sequence[str]] = ()  # columns that a model is given, as against what it has to say; none: all of them
    blank: ClassVar[Mapping[str, Any]] = {}  # columns of a raw row that hold an answer, each with what stands for none
    kinds: ClassVar[frozenset[str]] = sources.KINDS  # of files that hold its rows
    beside: ClassVar[frozenset[str]] = frozenset()  # kinds of files that a table among them names, as it names pictures
    at_once: ClassVar[int] = 1000  # rows that are read at once, fewer where each is large
    names_dropped: ClassVar[bool] = (
        False  # whether it is told which rows are dropped, since they are files that can be looked at
    )

    @property
    def name(self) -> str:
        """The name of the type: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    def fault(self, row: Row) -> str | None:
        """Return why a row can't be used (a reason to count), or None."""
        return _empty(row, self.filled)

    def located(self, raw: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a raw row with the content of files that it names, which lie in or under the folder of its own."""
        return raw

    def characters(self, raw: Mapping[str, Any]) -> int:
        """Return about how many characters of text take as long to read as a raw row, by which a stream is cut into chunks."""
        return sum(len(value) for value in raw.values() if isinstance(value, str)) or len(str(raw))

    def near(self, held_out: Iterable[Row]) -> Callable[[Row], bool] | None:
        """Return what says whether a row is nearly one of the held-out ones, so that it can't be trained on; None where none is."""
        return None

    def unanswered(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return a raw row that a format of the type reads, without the answers that it may have."""
        return {**raw, **self.blank}

    def unasked(self, row: Row) -> str | None:
        """Return why a row that came without answers asks nothing, or None."""
        return _empty(row, [column for column in self.filled if column not in self.blank])

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return what the rows can hardly mean."""
        return []

    def document(self, row: Row) -> str:
        """Return what is said in a row as one text, so that a model can be pretrained on it."""
        return "\n\n".join(_said(row))

    def asked(self, row: Row) -> str:
        """Return what a model is asked: rows in which it is the same stand on one side of the split, whatever the answers.

        Of a conversation that is what comes before the first answer, so that a prompt is held out in every type of rows alike;
        of a row without any text it is all that the row holds.
        """
        if not self.asks and len(row) == 1 and isinstance(text := next(iter(row.values())), str):
            return text
        given = [row[column] for column in self.asks or sorted(row.keys() - {"group"}) if column in row]
        said = [text for value in given for text in _said(opening(value) if is_messages(value) else value)]
        return "\n".join(said) if said else json.dumps(given)

    def told(self, row: Row) -> Row:
        """Return what of a row is written beside what a model says of it."""
        return row

    @property
    def is_shown(self) -> bool:
        """Whether rows of this type can be looked at."""
        return type(self).thumbnails is not DatasetType.thumbnails

    def thumbnails(self, row: Row) -> list[str]:
        """Return what of a row can be looked at, as small images for a page (data URLs)."""
        return []

    def prompt(self, row: Row) -> Messages | None:
        """Return the messages that a chat model can reply to, or None where a row holds no such thing."""
        return None


def _empty(row: Row, columns: Sequence[str]) -> str | None:
    """Return that the first of the columns is empty that is, or None."""
    return next((f"empty {column}" for column in columns if column in row and _blank(row[column])), None)


def _blank(value: str | Sequence[str]) -> bool:
    """Say whether a text, or a list of texts, holds nothing but blanks."""
    return (not value or value.isspace()) if isinstance(value, str) else all(map(_blank, value))


def _said(value: Any) -> Iterator[str]:
    """Yield the texts in a row, in order, save for who speaks and what groups rows."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        kept = ("text",) if value.get("type") in ("text", "image") else value.keys() - {"role", "group", "tools", "images"}
        for key, item in value.items():
            yield from _said(item) if key in kept else ()
    elif isinstance(value, Sequence):
        for item in value:
            yield from _said(item)


def is_messages(value: Any) -> bool:
    """Say whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def opening(turns: Messages) -> Messages:
    """Return the messages before the first answer to somebody; all of them where there is none."""
    asked = False
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant" and asked:
            return turns[:number]
        asked = asked or turn["role"] == "user"
    return turns


def known() -> list[str]:
    """Return the names of all types, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> DatasetType:
    """Return a type by its name; UserError if there is none."""
    if name not in known():
        raise UserError(f"dataset type: {name}: no such type; known are {', '.join(known())}")
    found: DatasetType = importlib.import_module(f"{__name__}.{name}").TYPE
    return found


def recognise(row: Mapping[str, Any], name: str, where: str, blank: Collection[str] = ()) -> Format:
    """Return the format of a row of the type `name`; UserError with the columns found if none fits.

    `blank`: columns that were put in for answers that a row has not, and which are not spoken of.
    """
    formats = load(name).formats
    for found in formats:
        if found.columns <= row.keys() and (found.when is None or found.when(row)):
            return found
    wanted = " or ".join(dict.fromkeys("{" + ", ".join(sorted(found.columns.difference(blank))) + "}" for found in formats))
    there = ", ".join(sorted(row.keys() - set(blank)))
    raise UserError(f"{where}: no format of {name}: found columns {{{there}}}, expected {wanted}; {_remedy(row, name, blank)}")


def _remedy(row: Mapping[str, Any], name: str, blank: Collection[str]) -> str:
    """Return what can be done about a row that no format of a type fits."""
    spelt = {column.strip().lower(): column for column in row}
    for found in load(name).formats:
        if found.columns and found.columns <= spelt.keys():
            return f"{_renaming({spelt[column]: column for column in sorted(found.columns)})} reads it"
    listed = [column for column, value in row.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    turns = [
        column
        for column in listed
        if {"role", "content"} <= row[column][0].keys() or {"from", "value"} <= row[column][0].keys()
    ]
    if turns and any(found.columns == {"messages"} for found in load(name).formats):
        return f"{_renaming({turns[0]: 'messages'})} reads it"
    if len(row) == 1 and listed and not turns:
        return f"if the rows are in {listed[0]}, make a file of that list alone"
    fitting = [(len(found.columns), other) for other in known() if other != name
               for found in load(other).formats if found.columns <= row.keys() and (found.when is None or found.when(row))]  # fmt: skip
    if fitting:
        return f"it is a row of type {max(fitting)[1]}"
    column = min(load(name).formats[0].columns.difference(blank))
    return f"rename the columns, or name them in a recipe, as in `columns: {{mine: {column}}}`"


def _renaming(names: Mapping[str, str]) -> str:
    return "`columns: {" + ", ".join(f"{old}: {new}" for old, new in names.items() if old != new) + "}` in a recipe"

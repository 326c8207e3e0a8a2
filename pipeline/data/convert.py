"""Raw rows → rows of a type: columns renamed, formats recognised, what is broken gathered, what would be lost told."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.data import sources, types
from pipeline.data.rows import Rows
from pipeline.data.types import Format, Malformed, Row
from pipeline.data.types._columns import thumb
from pipeline.data.types._trees import COLUMN, MESSAGE, TREE
from pipeline.system.errors import UserError


@dataclass
class Converter:
    """Converts the rows of one source."""

    type: str
    result: Rows  # which counts what was recognised and what was dropped
    faults: sources.Faults
    columns: Mapping[str, str] = field(default_factory=dict)  # a column's name in the source → its name in a format
    ignored: Sequence[str] = ()  # columns and keys that are left out on purpose
    missing: Mapping[str, Any] = field(default_factory=dict)  # a column's name in the source → what stands for no value in it
    unread: dict[str, None] = field(default_factory=dict)  # columns that no format read

    @functools.cached_property
    def _kind(self) -> types.DatasetType:
        return types.load(self.type)

    def rows(self, given: Iterator[sources.Raw]) -> Iterator[tuple[str, Row]]:
        """Yield the usable rows among raw ones; count the others and gather what is broken."""
        fault: Callable[[Row], str | None] = self._kind.fault
        found: Format | None = None
        names: Any = None
        choices = self._kind.formats
        sure = all(choice.when is None for choice in choices)
        plain = not (self.ignored or self.missing or self.columns)
        all_read = False  # whether the format reads every column, so that rows with the same need no look
        for where, raw in gathered(given) if any(choice.columns == TREE for choice in choices) else given:
            try:
                renamed = raw if plain else self._renamed(raw, where)
                if found is None or not sure or renamed.keys() != names:
                    found, names = types.recognise(renamed, self.type, where), renamed.keys()
                    all_read = not self._unread(renamed, found)
                if not all_read:
                    self._check(renamed, found)
                made = found.convert(renamed)
            except UserError as error:
                self.faults.add(error.faults[0])
                continue
            except Malformed as error:
                self.faults.add(f"{where}: {error}")
                continue
            self.result.formats[found.name] += 1
            several = isinstance(made, list)
            for number, row in enumerate(made if isinstance(made, list) else [made], start=1):
                if reason := fault(row):
                    self.result.dropped[reason] += 1
                    if self._kind.names_dropped:
                        self.result.named.append(f"{where}: dropped: {reason}")
                    continue
                if renamed.get("group") is not None:
                    row = row | {"group": str(renamed["group"])}
                yield f"{where}, {number}" if several else where, row

    def _renamed(self, raw: dict[str, Any], where: str) -> dict[str, Any]:
        """Return a row with the names that formats know, without what is ignored; UserError where a named column is missing."""
        if self.ignored:
            raw = _without(raw, set(self.ignored))
        if none := [name for name, value in self.missing.items() if name in raw and str(raw[name]) == str(value)]:
            raw = raw | dict.fromkeys(none)
        if not self.columns:
            return raw
        if missing := [name for name in self.columns if name not in raw]:
            raise UserError(f"{where}: columns: {', '.join(missing)}: no such column; found {{{', '.join(sorted(raw))}}}")
        kept = {name: value for name, value in raw.items() if name not in self.columns and name not in self.columns.values()}
        self.unread |= dict.fromkeys(name for name in self.columns.values() if name in raw and name not in self.columns)
        return kept | {new: raw[name] for name, new in self.columns.items()}

    def _unread(self, row: Mapping[str, Any], found: Format) -> set[str]:
        return set() if self._kind.reads_all else row.keys() - found.columns - found.more - {"group"}

    def _check(self, row: Mapping[str, Any], found: Format) -> None:
        """Take note of columns that are not read; Malformed where one of them matters."""
        if not (others := self._unread(row, found)):
            return
        for name in sorted(others & self._kind.matters.keys()):
            if row[name] if name != "label" else thumb(row[name]) is not None:
                raise Malformed(
                    f"{name} {self._kind.matters[name]}, but rows of type {self.type} ({found.name}) don't hold it; "
                    f"{'rows of type feedback do, or' if name == 'label' else 'another format or type may, or'} "
                    f"`ignore: [{name}]` in a recipe leaves it out"
                )
        self.unread |= dict.fromkeys(sorted(others))


def gathered(given: Iterable[sources.Raw]) -> Iterator[sources.Raw]:
    """Yield raw rows; those that are messages of one tree, which follow each other, as one row."""
    for number, group in itertools.groupby(given, key=lambda item: item[1].get(COLUMN) if item[1].keys() >= MESSAGE else None):
        if number is None:
            yield from group
        else:
            rows = list(group)
            yield rows[0][0], {COLUMN: [row for _, row in rows]}


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, names) for key, item in value.items() if key not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value

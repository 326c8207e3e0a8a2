"""A recipe of files, hub data sets and installed packages: raw rows in, rows of one type out, on two sides of a split."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data import files, hubs, kept, reading, sources, split, types
from pipeline.data.base import Recipe, listing
from pipeline.data.convert import Converter
from pipeline.data.documents import DOCUMENT, LARGE, Documents
from pipeline.data.files import Block
from pipeline.data.mixture import Part
from pipeline.data.paths import Paths
from pipeline.data.rows import SPLITS, Rows
from pipeline.data.types import Row
from pipeline.data.types.text import cut
from pipeline.system import cache, hashes
from pipeline.system.errors import UserError

HELD_OUT = 0.05  # of the rows, where a recipe doesn't say
_NAMED = 1000  # files of a folder, beyond which a record does not name each


@dataclass(frozen=True)
class Source:
    """One source of a YAML recipe or of --data."""

    files: Sequence[Path] = ()
    hub: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    holds: str = ""  # dataset type of its rows, where it is another than the recipe's
    columns: Mapping[str, str] = field(default_factory=dict)  # a column's name in the source → its name in a format
    ignored: tuple[str, ...] = ()  # columns, and keys of messages, that are left out on purpose
    missing: Mapping[str, Any] = field(default_factory=dict)  # a column's name in the source → what stands for no value in it
    share: float = 0.0  # of the training tokens, before all shares are made to add up to 1; 0: rows are read as they are
    held_out: bool | None = None  # whether all of it is held out; None: the files that are named as a split
    skipped: str = ""  # in words, the files of its folder that can't be read
    beside: Sequence[Path] = ()  # files that its tables may name, as they name pictures

    @classmethod
    def of(cls, pattern: str, type: str, **more: Any) -> Source:
        """Return the files of a path, a folder or a glob that rows of a type are read from; UserError if there is none."""
        kind = types.load(type)
        found, beside = sources.apart(sources.expand(pattern, kind.kinds), kind.beside)
        return cls(files=Paths(found), beside=Paths(beside), skipped=sources.skipped(pattern, kind.kinds), **more)

    @functools.cached_property
    def sides(self) -> list[tuple[Source, bool]]:
        """Its files with whether they are held out by name, those that are before the others."""
        if self.hub or self.held_out is not None:
            return [(self, bool(self.held_out))]
        train, out = split.by_name(self.files, sources.PICTURES)
        return [(replace(self, files=files), side) for files, side in ((out, True), (train, False)) if files]

    @property
    def name(self) -> str:
        """What people know it by: the file, the folder of several, or the hub's id."""
        if self.hub or len(self.files) == 1:
            return str(self.hub["name"]) if self.hub else self.files[0].name
        return f"{self.files[0].parent.name}/*"

    def raw(self, documents: Documents | None = None, notes: list[str] | None = None) -> Iterator[sources.Raw]:
        """Yield the raw rows with where each comes from."""
        return hubs.read(**self.hub) if self.hub else files.read(self.files, documents, notes)

    def blocks(self, documents: Documents | None, begin: Any, at_once: int) -> Iterator[Block]:
        """Yield the raw rows in blocks of at most `at_once`, from the place behind one of them on."""
        if not self.hub:
            yield from files.blocks(self.files, documents, begin, at_once=at_once)
            return
        faults = sources.Faults(math.inf)
        numbered = ((raw, number) for number, raw in enumerate(self.raw(), start=1))
        try:
            yield from files.listed(Path(self.name), itertools.islice(numbered, begin or 0, None), faults, at_once)
        except UserError as error:
            for fault in error.faults:
                faults.add(fault)
            yield Block(Path(self.name), faults=faults)

    @property
    def large(self) -> bool:
        """Whether one of its text files is cut into documents by itself."""
        return any(sources.is_text(path) and path.stat().st_size > LARGE for path in self.files)

    @property
    def moves(self) -> bool:
        """Whether its rows may be others tomorrow under the same identity, as a branch of a hub has them."""
        return bool(self.hub) and not Path(self.hub["name"]).is_dir()

    def identity(self) -> Any:
        """Return what stands for the source's content in a digest by `hashes.streamed`: a hub's revision, or the files' sums."""
        folder = Path(self.hub.get("name", ""))
        if self.hub and folder.is_dir():
            how = {key: value for key, value in self.hub.items() if key != "name"}
            return [how, self.held_out, hashes.outputs(hashes.files(folder))]
        if self.hub:
            return [self.hub, self.held_out]
        found = [[out, ([_told_by(path), hashes.sha256(path)] for path in source.files)] for source, out in self.sides]
        told = {os.path.relpath(path, self.files[0].parent): hashes.sha256(path) for path in self.beside}
        return [*found, *([told] if told else [])]


def _told(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield name and sha256 of files; of a folder of very many, how many there are and the digest of their listing."""
    for folder, group in itertools.groupby(files, key=lambda path: path.parent):
        entries = listing(group)
        if len(entries) > _NAMED:
            yield f"{folder.name}: {len(entries):,} files", hashes.digest(entries)
        else:
            yield from entries


def _told_by(path: Path) -> str:
    """Return what a file's name says of its rows: how it is read and, of a picture, its label, which is that of its folder."""
    return f"{path.parent.name}/{path.name}" if sources.kind(path) in sources.PICTURES else sources.decoded_as(path)


class Sided(NamedTuple):
    """A usable row of a source."""

    where: str
    row: Row
    key: bytes  # which decides its side
    digest: str  # of the row, where it is asked for
    away: bool  # whether it is beyond the share of its source


class SourceRecipe(Recipe):
    """A recipe of files, hub data sets and packages, in any format that is recognised."""

    def __init__(
        self, name: str, given: list[Source], type: str, held_out: float | None = None, deduplicate: bool = False, cut: int = 0,
        separator: str = "",
    ) -> None:  # fmt: skip
        self.name, self.given, self.type = name, given, type
        self.deduplicate, self.cut, self.separator = deduplicate, cut, separator
        self.named = any(out for source in given for _, out in source.sides)  # whether rows are held out by name
        self.held_out = (0.0 if self.named else HELD_OUT) if held_out is None else held_out

    def digest(self, type: str) -> str:
        """Return the digest of the sources' content and of what is done to it, their shares among that."""
        shares = [source.share for source in self.given]
        return hashes.digest([self._content(type), shares]) if any(shares) else self._content(type)

    def _content(self, type: str) -> str:
        """Return the digest of all that decides the rows; their shares only decide how often they are read."""
        self._check(type)
        identities = [
            [
                source.identity(),
                source.weight,
                source.holds,
                dict(source.columns),
                list(source.ignored),
                *([dict(source.missing)] if source.missing else []),
            ]
            for source in self.given
        ]
        whole = self.type != "text" or self.cut or self.separator or not any(source.large for source in self.given)
        how = [*([self.cut] if self.cut else []), *([{"separator": self.separator}] if self.separator else [])]
        how += [{"split": "prompt"}, *([] if whole else [{"document": DOCUMENT}])]
        return hashes.streamed([identities, self.type, self.held_out, self.deduplicate, *how])

    def contents(self) -> list[tuple[str, str]]:
        """Return the files, those of a large folder as one; a hub data set is named with its revision."""
        hubs = [(str(source.hub["name"]), str(source.hub.get("revision", ""))) for source in self.given if source.hub]
        return hubs + [entry for source in self.given for entry in _told(source.files)]

    def types(self) -> list[str]:
        """Return the one type that the recipe names."""
        return [self.type]

    def rows(self, type: str, split: str, seed: int) -> Rows:
        """Return the rows of a split: told apart by name, by group or else by what they ask, so that no prompt is on both sides."""
        self._check(type)
        identity = "" if any(source.moves for source in self.given) else cache.key(self._content(type), seed)
        if identity:

            def make(folder: Path) -> None:
                try:
                    reading.whole(self, folder, seed)
                finally:  # a file that is written meanwhile may look broken, too
                    self._unchanged(type, seed, identity)

            return self._read(cache.made(f"rows-{identity}", make), split, f"{identity}-{split}").usable(split)
        with tempfile.TemporaryDirectory(dir=cache.folder()) as made:
            reading.whole(self, Path(made), seed)
            return self._read(Path(made), split, "").usable(split)

    def _unchanged(self, type: str, seed: int, identity: str) -> None:
        """Raise UserError where the sources are no longer those of an identity."""
        try:
            found = cache.key(self._content(type), seed)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: was removed while it was read") from None
        if found != identity:
            raise UserError(f"{self.name}: was changed while it was read; run the same command again") from None

    def sided(
        self, source: Source, given: Iterable[sources.Raw], counted: Rows, faults: sources.Faults, unread: dict[str, None], seed: int
    ) -> Iterator[Sided]:  # fmt: skip
        """Yield the usable rows among raw ones of a source; `unread` gets the columns that no format read."""
        type, digested = types.load(source.holds or self.type), self.deduplicate or source.weight < 1
        for where, row in self._parts(source, given, counted, faults, unread):
            digest = hashes.digest(row) if digested else ""
            away = source.weight < 1 and int(hashes.digest([digest, seed])[:8], 16) >= source.weight * 2**32
            found = {"text": type.document(row)} if source.holds else row
            yield Sided(where, found, split.key(row, type.asked(row)), digest, away)

    def _read(self, folder: Path, split: str, identity: str) -> Rows:
        found = {name: kept.load(folder / f"{name}.arrow", self.name) for name in SPLITS}
        counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        rows, origins = found[split]
        trained = [source for source in self.given if not source.held_out]
        parts = [
            Part(source.name, start, stop, source.share)
            for source, (start, stop) in zip(trained, counts["parts"], strict=True) if source.share
        ]  # fmt: skip
        return Rows(
            rows, Counter(counts["dropped"]), formats=Counter(counts["formats"]), held_out=len(found["held_out"][0]),
            origins=origins, name=self.name, identity=identity, notes=counts["notes"],
            parts=parts if split == "train" else (),
        )  # fmt: skip

    def _parts(
        self, source: Source, given: Iterable[sources.Raw], result: Rows, faults: sources.Faults, unread: dict[str, None]
    ) -> Iterator[tuple[str, Row]]:
        """Yield the usable rows among raw ones of a source; long documents in parts, where the recipe cuts them."""
        converter = Converter(source.holds or self.type, result, faults, source.columns, source.ignored, source.missing, unread)
        for where, row in converter.rows(iter(given)):
            if self.cut and not source.holds and len(row["text"]) > self.cut:
                parts = cut(row["text"], self.cut)
                for number, part in enumerate(parts, start=1):
                    yield f"{where}, part {number}" if len(parts) > 1 else where, row | {"text": part}
            else:
                yield where, row

    def _check(self, type: str) -> None:
        if type != self.type:
            raise UserError(f"{self.name}: gives rows of type {self.type}, but {type} is wanted")

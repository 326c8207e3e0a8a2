"""A recipe: one file that says where a data set's rows come from, what is dropped, and what is held out.

A YAML recipe names sources; a Python recipe is a module with one generator function per shape
(`text`, `messages`, `preference`), each called with (split, seed), and `FILES`, a function that
returns the files it reads. Either way the rows come out in the same shape, counted.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import ROOT
from pipeline.chain import manifest
from pipeline.system import hashes
from pipeline.system.config import read_profile
from pipeline.data import shapes, sources
from pipeline.data.shapes import Malformed, Row
from pipeline.system.errors import UserError

FOLDER = ROOT / "data_recipes"
SPLITS = ("train", "held_out")
_SOURCE_KEYS = {"files", "hub", "package", "pattern", "subset", "split", "revision", "weight"}


@dataclass
class Rows:
    """What a recipe gave: rows of one shape, how many were dropped for which reason, and what was recognised."""

    kept: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)  # of the kept ones, those that encoding dropped
    left_out: Counter[str] = field(default_factory=Counter)  # parts of kept rows
    layouts: Counter[str] = field(default_factory=Counter)
    held_out: int = 0  # rows of the other split that the same pass went by
    places: list[str] = field(default_factory=list)  # of the kept rows, where they come from files
    name: str = ""  # of the recipe

    def place(self, number: int) -> str:
        """Return in words where a kept row stands: file and line, or its number in the recipe and how it begins."""
        if self.places:
            return self.places[number]
        return f"{self.name}: row {number + 1} ({json.dumps(self.kept[number], ensure_ascii=False)[:60]}...)"

    def hold_back(self, share: float, seed: int) -> list[Row]:
        """Take out and return about a share of the kept rows, told apart by group or else by content; UserError if none is left."""
        wanted = [int(manifest.digest([row.get("group") or row, seed])[:8], 16) < share * 2**32 for row in self.kept]
        back = [row for row, out in zip(self.kept, wanted, strict=True) if out]
        self.places = [place for place, out in zip(self.places, wanted, strict=False) if not out]
        self.kept = [row for row, out in zip(self.kept, wanted, strict=True) if not out]
        if not back or not self.kept:
            raise UserError(
                f"validation: {len(back):,} of {len(wanted):,} rows were held back; give another share, more rows, or patience: 0"
            )
        return back


class Recipe:
    """The interface of a recipe; `EMPTY` stands where none was read yet."""

    name = ""
    module: ModuleType | None = None  # of a Python recipe, where evaluation finds its questions and its judge

    def digest(self, shape: str) -> str:
        """Return the digest of the recipe and the content of its sources, in hex."""
        raise NotImplementedError

    def contents(self) -> list[tuple[str, str]]:
        """Return name and sha256 of every file behind the rows, for people; names without this machine's folders."""
        raise NotImplementedError

    def rows(self, shape: str, split: str, seed: int) -> Rows:
        """Return the rows of a split; UserError if the data is broken or nothing is left."""
        raise NotImplementedError


EMPTY = Recipe()


def listing(files: Iterable[Path]) -> list[tuple[str, str]]:
    """Return name and sha256 of files; a name is the file's own with the folder that it lies in."""
    return [("/".join(path.parts[-2:]), hashes.sha256(path)) for path in files]


def _clean(rows: Iterable[Row], shape: str, result: Rows) -> Rows:
    for row in rows:
        reason = row.get("dropped") or shapes.fault(row, shape)  # a recipe may say itself what it leaves out
        if reason:
            result.dropped[reason] += 1
        else:
            result.kept.append(row)
    return result


class PythonRecipe(Recipe):
    """A recipe that is a module; its own code and the files that it reads are its content."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.stem, path
        spec = importlib.util.spec_from_file_location(f"data_recipes.{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = self.module
        spec.loader.exec_module(self.module)

    def digest(self, shape: str) -> str:
        """Return the digest of the module, the recipes that it imports, and the files that it reads."""
        return manifest.digest([sha256 for _, sha256 in self.contents()])

    def contents(self) -> list[tuple[str, str]]:
        """Return the module, the recipes that it imports, and the files that it reads."""
        return listing([*_code(self.path), *getattr(self.module, "FILES", list)()])

    def rows(self, shape: str, split: str, seed: int) -> Rows:
        """Return what the module's function for this shape yields."""
        function = getattr(self.module, shape, None)
        if function is None:
            given = [name for name in shapes.SHAPES if hasattr(self.module, name)]
            raise UserError(f"{self.path}: gives no rows of shape {shape}, only {', '.join(given)}")
        result = _clean(function(split, seed), shape, Rows(name=self.name))
        return _not_empty(result, self.name, split)


def _code(path: Path, known: tuple[Path, ...] = ()) -> list[Path]:
    """Return a recipe's file and those of the shipped recipes that it imports, however deep."""
    found = [path]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, [FOLDER.name if node.level else "", node.module]))
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            package, _, module = name.partition(".")
            file = FOLDER / f"{module.partition('.')[0]}.py"
            if package == FOLDER.name and module and file.is_file() and file not in (*known, *found):
                found += [item for item in _code(file, (*known, *found)) if item not in found]
    return found


@dataclass(frozen=True)
class Source:
    """One source of a YAML recipe or of --data."""

    files: tuple[Path, ...] = ()
    hub: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    def raw(self) -> Iterator[sources.Raw]:
        """Yield the raw rows with the places they stand at."""
        return sources.read_hub(**self.hub) if self.hub else sources.read_files(list(self.files))

    def identity(self) -> Any:
        """Return what stands for the source's content in a digest: a hub's revision, or the files' sums."""
        folder = Path(self.hub.get("name", ""))
        if self.hub and folder.is_dir():
            how = {key: value for key, value in self.hub.items() if key != "name"}
            return [how, manifest.outputs(manifest.files(folder))]
        return self.hub or [[sources.kind(path), hashes.sha256(path)] for path in self.files]


class SourceRecipe(Recipe):
    """A recipe of files, hub data sets and packages, in any layout that is recognised."""

    def __init__(self, name: str, given: list[Source], shape: str, held_out: float, deduplicate: bool = False) -> None:
        self.name, self.given, self.shape = name, given, shape
        self.held_out, self.deduplicate = held_out, deduplicate

    def digest(self, shape: str) -> str:
        """Return the digest of the sources' content and of what is done to it."""
        identities = [[source.identity(), source.weight] for source in self.given]
        return manifest.digest([identities, self.shape, self.held_out, self.deduplicate])

    def contents(self) -> list[tuple[str, str]]:
        """Return the files; a hub data set is named with its revision."""
        hubs = [(str(source.hub["name"]), str(source.hub.get("revision", ""))) for source in self.given if source.hub]
        return hubs + [entry for source in self.given for entry in listing(source.files)]

    def rows(self, shape: str, split: str, seed: int) -> Rows:
        """Return the rows of a split: told apart by group or else by content, so that a duplicate never sits on both sides."""
        if shape != self.shape:
            raise UserError(f"{self.name}: gives rows of shape {self.shape}, but this stage trains on {shape}")
        result, seen, other = Rows(name=self.name), set[str](), list[tuple[Row, str]]()
        kept: list[tuple[Row, str]] = []
        faults = sources.Faults()
        for source in self.given:
            for where, row in self._converted(source, shape, result, faults):
                key, together = _hashed(row), _hashed(row.get("group") or row)
                held_out = int(together[:8], 16) < self.held_out * 2**32
                if self.deduplicate and key in seen:
                    result.dropped["duplicate"] += 1
                elif int(manifest.digest([key, seed])[:8], 16) >= source.weight * 2**32:
                    result.dropped["weighted away"] += 1
                else:
                    (kept if held_out == (split == "held_out") else other).append((row, where))
                seen.add(key)
        faults.stop()
        if not (kept if split == "train" else other):  # a single book is for training, not for holding out
            kept, other = (other, []) if split == "train" else ([], [])
        result.kept, result.places = [row for row, _ in kept], [where for _, where in kept]
        result.held_out = len(other) if split == "train" else len(result.kept)
        return _not_empty(result, self.name, split)

    @staticmethod
    def _converted(source: Source, shape: str, result: Rows, faults: sources.Faults) -> Iterator[tuple[str, Row]]:
        convert: Callable[[Any], Row] | None = None
        columns: Any = None
        for where, raw in source.raw():
            if raw.keys() != columns:
                try:
                    layout, convert = shapes.recognise(raw, shape, where)
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
            result.layouts[layout] += 1
            reason = shapes.fault(row, shape)
            if reason:
                result.dropped[reason] += 1
            else:
                yield where, row


def _hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _not_empty(result: Rows, name: str, split: str) -> Rows:
    pairs = result.dropped["chosen equals rejected"]
    if split == "train" and pairs and pairs >= len(result.kept):
        raise UserError(f"{name}: chosen equals rejected in {pairs:,} of {pairs + len(result.kept):,} pairs; nothing to prefer")
    if not result.kept and split == "train":
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.dropped.items()) or "there was none"
        raise UserError(f"{name}: no row is left for training ({reasons})")
    return result


def from_data(data: str, shape: str) -> Recipe:
    """Return the recipe of `--data`: files, a glob, a folder, or a hub id; one row in twenty is held out."""
    path = Path(data)
    known = sources.kind(path) in sources.READERS
    if path.exists() or known or any(letter in data for letter in "*?[") or data.count("/") != 1:
        if path.is_dir() and not any(sources.kind(item) in sources.READERS for item in path.rglob("*") if item.is_file()):
            raise UserError(f"{data}: no readable file in that folder")
        return SourceRecipe(data, [Source(files=tuple(sources.expand(data)))], shape, held_out=0.05)
    return SourceRecipe(data, [Source(hub={"name": data})], shape, held_out=0.05)


def of(record: Mapping[str, Any], shape: str) -> Recipe:
    """Return the recipe that a finished stage was made with, by its record."""
    data = record["recipe"].get("data")
    return from_data(data, shape) if data else load(record["config"]["recipe"])


def _source(entry: Any, where: str) -> Source:
    if not isinstance(entry, dict) or not set(entry) <= _SOURCE_KEYS:
        raise UserError(f"{where}: a source has the keys {', '.join(sorted(_SOURCE_KEYS))}; found {entry!r}")
    weight = entry.get("weight", 1.0)
    if not isinstance(weight, (int, float)) or not 0 < weight <= 1:
        raise UserError(f"{where}: weight {weight} is not above 0 and at most 1 (the share of the source's rows that is used)")
    if "files" in entry:
        return Source(files=tuple(sources.expand(str(entry["files"]))), weight=weight)
    if "package" in entry and "pattern" not in entry:
        raise UserError(f"{where}: a package needs a pattern that says which of its files to read; found {entry!r}")
    if "package" in entry:
        return Source(files=tuple(sources.package_files(entry["package"], entry["pattern"])), weight=weight)
    if "hub" in entry:
        hub = {key: entry[key] for key in ("subset", "split", "revision") if key in entry}
        return Source(hub={"name": entry["hub"], **hub}, weight=weight)
    raise UserError(f"{where}: a source needs files, package or hub; found {entry!r}")


@functools.cache
def load(name: str) -> Recipe:
    """Return a recipe by name (in data_recipes) or path; UserError if there is none or it is malformed."""
    for path in (Path(name), FOLDER / f"{name}.py", FOLDER / f"{name}.yaml"):
        if path.suffix == ".py" and path.is_file():
            return PythonRecipe(path)
        if path.suffix == ".yaml" and path.is_file():
            return _from_yaml(path)
    known = sorted(item.stem for item in FOLDER.glob("*") if item.suffix in (".py", ".yaml") and item.stem != "__init__")
    raise UserError(f"recipe: {name}: no such recipe; known are {', '.join(known)}, or give a path")


def _from_yaml(path: Path) -> SourceRecipe:
    loaded = read_profile(path)
    unknown = set(loaded) - {"shape", "sources", "held_out", "deduplicate"}
    faults = [f"{path}: {key}: unknown key; a recipe has shape, sources, held_out, deduplicate" for key in sorted(unknown)]
    if loaded.get("shape") not in shapes.SHAPES:
        faults.append(f"{path}: shape: expected one of {', '.join(shapes.SHAPES)}, found {loaded.get('shape')!r}")
    if not isinstance(loaded.get("sources"), list):
        faults.append(f"{path}: sources: expected a list, found {loaded.get('sources')!r}")
    held_out = loaded.get("held_out", 0.05)
    if not isinstance(held_out, (int, float)) or not 0 <= held_out < 1:
        faults.append(f"{path}: held_out: expected a share of at least 0 and below 1, found {held_out!r}")
    if faults:
        raise UserError(*faults)
    given = [_source(entry, f"{path}: sources") for entry in loaded["sources"]]
    return SourceRecipe(path.stem, given, loaded["shape"], held_out, bool(loaded.get("deduplicate")))

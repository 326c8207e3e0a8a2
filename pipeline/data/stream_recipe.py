"""A recipe with `stream: yes`: its rows are read while a model trains on them, and never as a whole.

What is known of the data before the first step is a sample: the first chunks of the stream, about 20 million characters. A
tokenizer is trained on it, and its held-out rows are those that the evaluation reads. Which rows are held out depends on
their own text alone, so what the stream leaves out is held out wherever it stands.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.data import hubs, kept, reading, split, stream, types
from pipeline.data.ranges import File
from pipeline.data.rows import Rows
from pipeline.data.source_recipe import Source, SourceRecipe
from pipeline.data.stream import Place, Pool, Stream
from pipeline.system import cache, hashes, process
from pipeline.system.errors import UserError

SAMPLE = 20_000_000  # characters that are read before the first step, and again as many of what is held out by name
_KEYS = "named.keys"  # of the sample's folder: the keys of rows that are held out by name, 16 bytes each


def _known_by(files: Iterable[File]) -> list[list[Any]]:
    """Return what stands for the content of files in a digest."""
    return [[file.name, file.size, file.changed] for file in files]


class StreamRecipe(SourceRecipe):
    """A recipe of files and hub data sets whose rows are streamed."""

    streams = True

    def _content(self, type: str) -> str:
        """Return the digest of what stands for the data, and of what is done to it: no file is read for it."""
        self._check(type)
        found = [
            [_known_by(self._files[number]), source.held_out, source.weight, source.holds,
             dict(source.columns), list(source.ignored), *([dict(source.missing)] if source.missing else []),
             *([_known_by(map(File.on_disk, source.beside))] if source.beside else [])] for number, source in enumerate(self.given)
        ]  # fmt: skip
        return hashes.digest(["stream", found, self.type, self.held_out, self.cut, self.separator])

    def contents(self) -> list[tuple[str, str]]:
        """Return each file with what it is known by: its revision on a hub, else its size and the time of its change."""
        return [
            (file.name, f"revision {file.changed}" if file.far else f"{file.size} bytes, changed at {file.changed} ns")
            for found in self._files for file in found
        ]  # fmt: skip

    @functools.cached_property
    def _known(self) -> list[list[File]]:
        return [hubs.files(**source.hub) if source.hub else [] for source in self.given]

    @property
    def _files(self) -> list[list[File]]:
        """The files of each source: on a hub as they were at first, on disk as they are."""
        return [
            known or [File.on_disk(path) for path in source.files]
            for known, source in zip(self._known, self.given, strict=True)
        ]

    def _pools(self, seed: int | None, named: bool) -> list[Pool]:
        """Return the files for training, or those that are held out by name: a pool for all of them, or for each with a share."""
        given: list[tuple[Source, list[File]]] = []
        for source, files in zip(self.given, self._files, strict=True):
            for side, held_out in source.sides:
                wanted = {str(path) for path in side.files}
                mine = files if source.hub else [file for file in files if file.path in wanted]
                if held_out == named:
                    given.append((side, mine))
        if named or not any(source.share for source, _ in given):
            return [Pool(given, seed)] if given else []
        return [Pool([one], seed) for one in given]

    def rows(self, type: str, split: str, seed: int) -> Rows:
        """Return the rows of a split that the sample has; those for training come with the stream that they begin."""
        self._check(type)
        identity = cache.key("stream", self._content(type), seed)
        folder = cache.made(f"rows-{identity}", lambda folder: self._sample(folder, seed))
        found = self._read(folder, split, "").usable(split)
        found.parts = ()
        if split == "train":
            keys = (folder / _KEYS).read_bytes()
            named = frozenset(keys[start : start + 16] for start in range(0, len(keys), 16))
            near = types.load(type).near(row for row in self._read(folder, "held_out", "").kept if not row.get("group"))
            found.stream = Stream(self, self._pools(seed, False), seed, named, near)
        return found

    def _sample(self, folder: Path, seed: int) -> None:
        """Write the rows of the first chunks, held out or not, as a pass over a whole recipe does."""
        counted, notes, faults = Rows(name=self.name), list[str](), list[str]()
        sides = split.Sides(folder, self.held_out, moves=False)
        pools = {True: self._pools(None, True), False: self._pools(seed, False)}
        progress = process.reading(self.name)
        for named, group in pools.items():
            for pool in group:
                place, size, before = Place(), SAMPLE // len(group), counted.formats.total()
                while not place.epoch and size > 0:
                    found, place = stream.read(self, pool, place, stream.CHUNK, counted, seed, notes=notes)
                    columns = kept.Columns()
                    for where, row, _ in found:
                        columns.add(row, where)
                    same = sides.add(columns.batch(), b"".join(key for *_, key in found), named)
                    counted.dropped.update([split.SAME] * len(same))
                    size -= stream.CHUNK
                    progress.tell(lambda: f"{counted.formats.total():,} rows of the sample read")
                faults += [f"{name}: is empty; it holds no row" for name in pool.empty]
                if place.epoch and counted.formats.total() == before and not pool.empty:
                    faults.append(f"{pool.name}: is empty; it holds no row")
                if named and not place.epoch:
                    notes.append(f"of what is held out by name, the first {SAMPLE:,} characters are")
        if faults:
            raise UserError(*faults)
        for _ in (source for source in self.given if not source.held_out):
            sides.begin()
        sides.close()
        if said := reading.drop_near(self, folder):
            counted.dropped[reading.NEAR] += said
        notes += counted.named[: reading.NAMED]
        (folder / _KEYS).write_bytes(b"".join(sorted(sides.named)))
        if not sides.writers[split.HELD_OUT].rows and (self.held_out or self.named):
            notes.append(f"no row of the sample is held out, so nothing can be measured: {self.name} has too few rows")
        counts: dict[str, Any] = {
            "dropped": counted.dropped, "formats": counted.formats, "notes": list(dict.fromkeys(notes)), "parts": sides.parts,
        }  # fmt: skip
        (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")

"""Rows of a recipe as a stream: no pass over the data before the first step, nothing of it kept, and any place found again.

The parts of all files (pipeline/data/ranges.py) are shuffled by seed and epoch, and so are the rows of a chunk: the parts
that are read at once, about half a million characters. Where a chunk begins is a `Place`, from which it is read again as it was.
A library's shuffle buffer has no such place: what it holds when a process is killed is lost.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data import hubs, ranges, split, types
from pipeline.data.documents import Documents
from pipeline.data.ranges import File
from pipeline.data.reading import NEAR, unread
from pipeline.data.rows import Rows
from pipeline.data.sources import Faults, Raw
from pipeline.data.types import Row
from pipeline.system.errors import UserError
from pipeline.system.process import reading

if TYPE_CHECKING:
    from pipeline.data.source_recipe import Source, SourceRecipe

Told = tuple[str, Row, bytes]  # where a row stands, the row, and the key of what it asks
CHUNK = 500_000  # characters of a chunk, about; going on from a checkpoint reads so much again
_PARTS = 1 << 18  # of a pool, at most, about; beyond that they are larger
_TOGETHER = 16  # files of a hub that are asked for their parts at once


class Place(NamedTuple):
    """Where a chunk begins: the epoch, which of its parts, and which row of that."""

    epoch: int = 0
    part: int = 0
    row: int = 0


@dataclass
class Chunk:
    """Rows that are read at once, in the order in which they are trained, and what was counted with them."""

    rows: Rows
    origins: list[str]
    next: Place


class Pool:
    """Sources whose parts are shuffled together: all of a recipe, or one that has a share of the tokens."""

    def __init__(self, given: Sequence[tuple[Source, Sequence[File]]], seed: int | None) -> None:
        """Find the parts; `seed`: None leaves them in order."""
        self.given, self.seed = given, seed
        self.name = given[0][0].name if len(given) == 1 else f"{len(given)} sources"
        self.share = given[0][0].share
        files = [(source, file) for source, found in given for file in found]
        whole = sum(file.size for _, file in files)
        least = {far: max(ranges.FAR if far else ranges.NEAR, whole // _PARTS) for far in (False, True)}
        progress = reading(self.name)
        found: list[Sequence[tuple[int, int]]] = []

        def look() -> None:  # from the first file on that was not answered for
            left = [file for _, file in files[len(found) :]]
            with ThreadPoolExecutor(_TOGETHER) as pool:
                for cuts in pool.map(lambda file: ranges.parts(file, least[file.far]), left):
                    found.append(cuts)
                    progress.tell(lambda: f"{len(found):,} of {len(files):,} files looked at")

        hubs.again(self.name, look)
        read = {id(source) for (source, _), cuts in zip(files, found, strict=True) if cuts}
        self.empty = [source.name for source, _ in given if id(source) not in read]  # sources without a part
        self._files = [(*one, cuts) for one, cuts in zip(files, found, strict=True) if cuts]
        self._ends = list(accumulate(len(cuts) for _, _, cuts in self._files))
        self._order: tuple[int, Any] = (-1, ())

    def __len__(self) -> int:
        """Return how many parts there are."""
        return self._ends[-1] if self._ends else 0

    def order(self, epoch: int, process: int, processes: int) -> Sequence[int]:
        """Return the parts that a process reads in an epoch; no two processes read the same one."""
        if self.seed is None:
            return range(len(self))
        if self._order[0] != epoch:
            import numpy as np

            self._order = epoch, np.random.default_rng([self.seed, 17, epoch]).permutation(len(self))
        return self._order[1][process::processes]  # type: ignore[no-any-return]

    def part(self, number: int) -> tuple[Source, File, int, int]:
        """Return a part by its number: whose it is, and where it begins and ends."""
        at = bisect_right(self._ends, number)
        source, file, cuts = self._files[at]
        return source, file, *cuts[number - self._ends[at]]


class Stream:
    """The rows for training of a recipe, a chunk at a time."""

    def __init__(
        self, recipe: SourceRecipe, pools: Sequence[Pool], seed: int, named: frozenset[bytes], near: Callable[[Row], bool] | None = None,
    ) -> None:  # fmt: skip
        """Begin with pools; `named`: keys of the rows that are held out by name, which are left out wherever they are met.

        `near` says whether a row is nearly one of those that the evaluation reads, which is dropped and counted.
        """
        self.recipe, self.pools, self.seed, self.named, self._near = recipe, pools, seed, named, near

    def chunk(self, pool: int, place: Place, process: int = 0, processes: int = 1) -> Chunk:
        """Return the rows for training of the chunk at a place; UserError where the data is broken or changed."""
        counted = Rows(name=self.recipe.name)
        size = CHUNK // len(self.pools)
        found, after = read(self.recipe, self.pools[pool], place, size, counted, self.seed, process, processes)
        kept = [(where, row) for where, row, key in found if not split.out(key, self.recipe.held_out) and key not in self.named]
        held_out = len(found) - len(kept)
        if self._near:
            far = [told for told in kept if told[1].get("group") or not self._near(told[1])]
            counted.dropped.update([NEAR] * (len(kept) - len(far)))
            kept = far
        random.Random(f"{self.seed}/{pool}/{tuple(place)}/{process}/{processes}").shuffle(kept)
        counted.kept, counted.held_out = [row for _, row in kept], held_out
        return Chunk(counted, [where for where, _ in kept], after)

    def divided(self, processes: int) -> None:
        """Raise UserError where a pool has fewer parts than there are processes to read them."""
        if faults := [
            f"{pool.name}: its {len(pool)} parts can't be divided among {processes} processes; start fewer, or write more files or row groups"
            for pool in self.pools if len(pool) < processes
        ]:  # fmt: skip
            raise UserError(*faults)


def read(
    recipe: SourceRecipe, pool: Pool, place: Place, size: int, counted: Rows, seed: int, process: int = 0, processes: int = 1,
    notes: list[str] | None = None,
) -> tuple[list[Told], Place]:  # fmt: skip
    """Return the rows of a pool from a place on, of about so many characters in one epoch, and the place behind them.

    Each comes with where it stands and with the key of its prompt or text. A hub that fails is asked again. UserError
    where something is broken.
    """
    order = pool.order(place.epoch, process, processes)
    documents = Documents(recipe.cut, recipe.separator)
    given, after, faults = hubs.again(pool.name, lambda: _raw(recipe, pool, order, place, size, documents))
    found: list[Told] = []
    for _, group in groupby(given, key=lambda one: id(one[0])):
        same = list(group)
        columns = dict[str, None]()
        for one in recipe.sided(same[0][0], (raw for _, raw in same), counted, faults, columns, seed):
            if one.away:
                counted.dropped["weighted away"] += 1
            else:
                found.append((one.where, one.row, one.key))
        if notes is not None:
            notes += unread(same[0][0], columns)
    try:
        faults.stop()
    except UserError as error:
        raise UserError(*map(ranges.told, error.faults)) from None
    return found, after


def _raw(
    recipe: SourceRecipe, pool: Pool, order: Sequence[int], place: Place, size: int, documents: Documents
) -> tuple[list[tuple[Source, Raw]], Place, Faults]:
    """Return raw rows from a place on with their sources, the place behind them, and what is broken."""
    found: list[tuple[Source, Raw]] = []
    faults, left, at = Faults(), size, place
    while at.part < len(order):
        source, file, start, stop = pool.part(int(order[at.part]))
        kind = types.load(source.holds or recipe.type)
        for where, raw in ranges.read(file, start, stop, at.row, documents, faults):
            raw = kind.located(raw, Path(file.path).parent) if kind.beside and not file.far else raw
            found.append((source, (where, raw)))
            left -= kind.characters(raw)
            at = at._replace(row=at.row + 1)
            if left <= 0:
                return found, at, faults
        at = Place(at.epoch, at.part + 1)
    return found, Place(at.epoch + 1), faults

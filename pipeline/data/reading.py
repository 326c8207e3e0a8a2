"""A pass over the sources of a recipe: every row is read once, on all cores, and written to the side that it is on.

A pass that was killed goes on where it was marked for the last time, and reads nothing before that again. The files that it
leaves have the same bytes, on any number of cores, however often it was killed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data import kept, sources, split, types
from pipeline.data.convert import gathered
from pipeline.data.documents import Documents
from pipeline.data.files import Block, listed
from pipeline.data.rows import Rows
from pipeline.data.seen import Seen
from pipeline.data.sources import Faults
from pipeline.data.types._trees import COLUMN, TREE
from pipeline.system import cores, process, words

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.data.source_recipe import Source, SourceRecipe

NAMED = 10  # dropped rows that are told one by one, of types that have them so
_MARKED = 64_000_000  # bytes that are read between two marks, about
NEAR = "nearly the same as a held-out row"
_LARGE = 5_000_000  # bytes of a source that takes a second or more


@dataclass
class _Done:
    """What a pass has read so far and counted; a mark holds it as JSON."""

    source: int = 0  # the number of the source that it is in
    place: Any = None  # in that source, behind what was read; None before its first row
    before: int = 0  # rows that the sources before it have
    seen: int = 0  # bytes of digests
    dropped: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    unread: dict[str, None] = field(default_factory=dict)  # columns of the source that no format read
    notes: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)  # rows that were dropped, each with its reason, the first of them
    both: str = ""  # where the first row stands whose prompt is held out, too

    def __post_init__(self) -> None:
        self.dropped, self.formats = Counter(self.dropped), Counter(self.formats)

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return self.formats.total()


class _Part(NamedTuple):
    """What a block gives: its usable rows with their keys, and what was counted."""

    place: Any  # behind it
    size: int
    rows: pa.RecordBatch
    keys: bytes
    digests: list[str]
    away: list[bool]  # whether rows are beyond the share of their source
    counted: Rows
    unread: dict[str, None]
    notes: list[str]
    faults: Faults


def whole(recipe: SourceRecipe, folder: Path, seed: int) -> None:
    """Write the rows of a recipe into `folder`, which may have what a killed pass left; UserError with what is broken."""
    sides, faults = split.Sides(folder, recipe.held_out), Faults()
    skipped = [f"{source.name}: not read: {source.skipped}" for source in recipe.given if source.skipped]
    done = _Done(**sides.marked.get("done", {"notes": skipped}))
    seen = Seen(folder / "pass.seen", done.seen) if recipe.deduplicate else None
    both = [part for source in recipe.given for part in source.sides]
    for number, (source, out) in enumerate(sorted(both, key=lambda part: not part[1])):  # those that are held out by name first
        if number < done.source:
            continue
        if number > done.source or done.place is None:
            done.source, done.place, done.before, done.unread = number, None, done.rows, {}
            if not out:
                sides.begin()
        for part in _parts(recipe, source, seed, done):
            _take(part, out, done, sides, seen, faults)
        if done.rows == done.before and not faults.count:
            faults.add(f"{source.name}: is empty; it holds no row")
        done.notes += unread(source, done.unread)
    faults.stop()
    sides.close()
    if said := drop_near(recipe, folder):
        done.dropped[NEAR] += said
    (folder / "pass.seen").unlink(missing_ok=True)
    if not min(writer.rows for writer in sides.writers.values()) and (recipe.held_out or recipe.named):
        done.notes.append(
            f"no row is held out, so nothing can be measured: {recipe.name} has a single prompt or text; `cut` or `separator` in a recipe cuts a text"
        )
    if done.both:
        done.notes.append(f"{done.both}: has {split.SAME}; {done.dropped[split.SAME]:,} such rows are dropped from training")
    done.notes += done.named
    counts = {"dropped": done.dropped, "formats": done.formats, "notes": done.notes, "parts": sides.parts}
    (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")


def drop_near(recipe: SourceRecipe, folder: Path) -> int:
    """Leave out rows for training that are nearly held-out ones, where their type tells so; return how many.

    Rows of a group are on the side of their group, which alone decides.
    """
    (trained, origins), (held_out, _) = (kept.load(folder / f"{name}.arrow") for name in split.SPLITS)
    near = types.load(recipe.type).near(row for row in held_out if not row.get("group"))
    if near is None or not len(held_out):
        return 0
    out = bytearray(not row.get("group") and near(row) for row in trained)
    if lost := sum(out):
        writer = kept.Writer(folder / "train.near")
        for row, where, left_out in zip(trained, origins, out, strict=True):
            if not left_out:
                writer.add(row, where)
        writer.close()
        (folder / "train.near").replace(folder / "train.arrow")
    return lost


def unread(source: Source, columns: Iterable[str]) -> list[str]:
    """Return in words which columns of a source are not read; nothing where all are."""
    return [f"{source.name}: not read: {', '.join(columns)}"] if columns else []


def _take(part: _Part, out: bool, done: _Done, sides: split.Sides, seen: Seen | None, faults: Faults) -> None:
    """Write the rows of a part, take in what it counted, and mark the place where enough was read."""
    done.place = part.place
    done.dropped.update(part.counted.dropped)
    done.formats.update(part.counted.formats)
    done.unread |= part.unread
    done.notes += part.notes
    room = max(0, NAMED - len(done.named))
    done.named += part.counted.named[:room]
    faults.take(part.faults)
    rows, keys = part.rows, part.keys
    old = [not seen.new(digest) for digest in part.digests] if seen is not None else [False] * len(part.away)
    if any(old) or any(part.away):
        done.dropped.update(
            "duplicate" if one else "weighted away" for one, away in zip(old, part.away, strict=True) if one or away
        )
        rows, keys = _without(rows, keys, [one or away for one, away in zip(old, part.away, strict=True)])
    if same := sides.add(rows, keys, out):
        done.dropped[split.SAME] += len(same)
        done.both = done.both or same[0]
    sides.size += part.size
    if sides.size >= _MARKED and part.place is not None and not faults.count:
        done.seen = seen.written() if seen is not None else 0
        sides.mark(done=vars(done))


def _without(rows: pa.RecordBatch, keys: bytes, dropped: list[bool]) -> tuple[pa.RecordBatch, bytes]:
    import pyarrow as pa

    left = [not one for one in dropped]
    return rows.filter(pa.array(left)), b"".join(itertools.compress(split.keys_of(keys), left))


def _parts(recipe: SourceRecipe, source: Source, seed: int, done: _Done) -> Iterator[_Part]:
    """Yield what the blocks of a source give, in order, from where the pass is on."""
    progress, type = process.reading(recipe.name), types.load(source.holds or recipe.type)
    size = sum(path.stat().st_size for path in source.files)
    if size > _LARGE:  # a text is scanned before its first row
        progress.say(f"reads {source.name}, {size / 1e6:,.0f} MB" + (f", on from row {done.rows + 1:,}" if done.place else ""))
    documents = Documents(recipe.cut, recipe.separator) if type.name == "text" else None
    blocks = source.blocks(documents, done.place, type.at_once)
    if any(choice.columns == TREE for choice in type.formats):
        blocks = _with_whole_trees(blocks)
    with contextlib.closing(cores.each(functools.partial(_part, recipe, source, seed), blocks)) as parts:
        for part in parts:
            yield part
            progress.tell(lambda: f"{words.counted(done.rows, 'row')} read")


def _part(recipe: SourceRecipe, source: Source, seed: int, block: Block) -> _Part:
    counted, faults, columns, unread = Rows(name=recipe.name), Faults(math.inf), kept.Columns(), dict[str, None]()
    faults.take(block.faults)
    given = block.located(types.load(source.holds or recipe.type), faults)
    sided = list(recipe.sided(source, given, counted, faults, unread, seed))
    for one in sided:
        columns.add(one.row, one.where)
    keys, digests, away = b"".join(one.key for one in sided), [one.digest for one in sided], [one.away for one in sided]
    return _Part(block.after, block.size, columns.batch(), keys, digests, away, counted, unread, block.notes, faults)


def _with_whole_trees(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield blocks, from the first that has messages of trees on with the rows of a tree as one; a tree may stand in two blocks."""
    for block in blocks:
        if not block.has(COLUMN):
            yield block
            continue
        faults = Faults(math.inf)

        def rows(first: Block = block, faults: Faults = faults) -> Iterator[sources.Raw]:
            for one in itertools.chain([first], blocks):
                faults.take(one.faults)
                yield from one.rows(faults)

        yield from listed(block.path, ((raw, None) for raw in gathered(rows())), faults)

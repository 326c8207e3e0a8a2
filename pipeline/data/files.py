"""Files of rows, read in blocks: a block is read here, and its rows are parsed wherever it is sent.

Behind each block reading can go on another day, and finds what it would have found then.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import lzma
import math
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from pipeline.data import encodings, parquet
from pipeline.data.documents import Documents, NotText, at
from pipeline.data.sources import (
    ARCHIVE,
    PICTURES,
    READERS,
    Faults,
    Raw,
    decoded,
    is_text,
    kind,
    opened,
    parsed_lines,
    read_lines,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.data.types import DatasetType

_BYTES, _ROWS = 1 << 20, 1000  # of a block, at most, save for a single longer row; lines are not counted
_LINE = 100  # bytes of a line that names a file, about
_MEMBERS = {"cls": "label", "txt": "text"}  # endings of an archive's members → columns
LINES = ("jsonl", "ndjson", "json")


@dataclass
class Block:
    """Raw rows that are read at once: whole lines of JSON, rows of Parquet, or rows that are parsed already."""

    path: Path
    content: bytes | pa.RecordBatch | list[Raw] = field(default_factory=list)
    after: Any = None  # where in the file reading goes on behind it, as JSON; None at its end
    number: int = 1  # of its first line or row in the file
    size: int = 0  # bytes or characters, about
    notes: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=lambda: Faults(math.inf))  # met while it was read

    def __len__(self) -> int:
        """Return how many rows or lines it has."""
        if isinstance(self.content, bytes):
            return self.content.count(b"\n")
        return self.content.num_rows if not isinstance(self.content, list) else len(self.content)

    def located(self, kind: DatasetType, faults: Faults) -> Iterator[Raw]:
        """Yield its rows with the content of the files that a type's rows name."""
        rows, folder = self.rows(faults), self.path.parent
        return ((where, kind.located(raw, folder)) for where, raw in rows) if kind.beside else rows

    def rows(self, faults: Faults) -> Iterator[Raw]:
        """Yield its rows; what is broken is a fault."""
        if isinstance(self.content, bytes):
            yield from parsed_lines(self.path, decoded(io.BytesIO(self.content), self.path, faults, self.number), faults)
        elif isinstance(self.content, list):
            yield from self.content
        else:
            for number, row in enumerate(self.content.to_pylist(), start=self.number):
                yield f"{self.path}: row {number}", row

    def has(self, column: str) -> bool:
        """Say whether a row of it may have a column."""
        if isinstance(self.content, bytes):
            return column.encode() in self.content
        if isinstance(self.content, list):
            return any(column in row for _, row in self.content)
        return column in self.content.schema.names


def read(
    paths: Sequence[Path], documents: Documents | None = None, notes: list[str] | None = None, by_line: bool = False
) -> Iterator[Raw]:
    """Yield the raw rows of files; UserError at the end if any row was broken.

    `documents`: how text files are cut; without it each is one row, or with `by_line` each of its lines that is not blank.
    `notes` gets what there is to say of that.
    """
    faults = Faults()
    for block in blocks(paths, documents, by_line=by_line):
        faults.take(block.faults)
        yield from block.rows(faults)
        if notes is not None:
            notes += block.notes
    faults.stop()


def blocks(
    paths: Sequence[Path], documents: Documents | None = None, begin: Any = None, by_line: bool = False, at_once: int = _ROWS
) -> Iterator[Block]:
    """Yield the raw rows of files in blocks, as `read` has them; `begin`: what a block says of the place behind it.

    `at_once`: rows of a block, at most, where the files that they name make them large; of lines about so many.
    """
    first, place = begin or (0, None)
    small = None
    for number, path in enumerate(itertools.islice(paths, first, None), start=first):
        for block in _blocks(path, documents, place, by_line, at_once):
            block.after = [number, block.after] if block.after is not None else [number + 1, None]
            if small is not None:
                if (joined := _joined(small, block, at_once)) is not None:
                    block = joined
                else:
                    yield small
                small = None
            if isinstance(block.content, list) and block.size < _BYTES and len(block) < at_once:
                small = block  # which the next file may add to
            else:
                yield block
        place = None
    if small is not None:
        yield small


def _joined(one: Block, other: Block, at_once: int) -> Block | None:
    """Return two blocks of parsed rows as one, if that is not too large; where rows name files, their folder is one, too."""
    if not isinstance(one.content, list) or not isinstance(other.content, list):
        return None
    if one.size + other.size > _BYTES or len(one) + len(other) > at_once:
        return None
    if at_once < _ROWS and one.path.parent != other.path.parent:
        return None
    one.faults.take(other.faults)
    return replace(
        other, content=one.content + other.content, size=one.size + other.size, notes=one.notes + other.notes, faults=one.faults
    )


def _blocks(path: Path, documents: Documents | None, begin: Any, by_line: bool, at_once: int) -> Iterator[Block]:
    """Yield the blocks of a file, the last of which holds what is to be said of it."""
    read, notes, faults = 0, list[str](), Faults(math.inf)
    try:
        for block in _of(path, documents, begin, by_line, notes, faults, at_once):
            yield block
            read += len(block)
    except NotText as error:
        faults.add(f"{path}: {error}", lambda: encodings.remedy(path, opened))
    except (OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zlib.error, tarfile.TarError) as error:
        faults.add(f"{path}: can't be read{f' after row {read:,}' if read else ''} ({' '.join(str(error).split())[:200]})")
    if notes or faults.count:
        yield Block(path, notes=notes, faults=faults)


def _of(
    path: Path, documents: Documents | None, begin: Any, by_line: bool, notes: list[str], faults: Faults, at_once: int
) -> Iterator[Block]:
    """Yield the blocks of a file by its kind; `notes` and `faults` get what is met on the way."""
    if kind(path) in PICTURES:
        yield Block(path, [(str(path), {"file_name": path.name, "label": path.parent.name})], size=path.stat().st_size)
        return
    if kind(path) == ARCHIVE:
        with opened(path) as file:
            numbered = ((raw, number) for number, raw in enumerate(members(path, file), start=1))
            yield from listed(path, itertools.islice(numbered, begin or 0, None), faults, at_once)
        return
    if at_once < _ROWS and kind(path) in LINES and (kind(path) != "json" or _has_lines(path)):
        yield from _line_blocks(path, begin, at_once * _LINE)
        return
    if kind(path) in _BLOCKS and (kind(path) != "json" or _has_lines(path)):
        yield from _BLOCKS[kind(path)](path, begin)
        return
    if documents and is_text(path):
        cut = documents.read(path, opened, notes, begin)
        yield from listed(path, (((where, {"text": text}), place) for where, text, place in cut), faults)
        return
    rows = read_lines(path, faults) if by_line and is_text(path) else READERS[kind(path)](path, faults)
    numbered = ((raw, number) for number, raw in enumerate(rows, start=1))
    yield from listed(path, itertools.islice(numbered, begin or 0, None), faults, at_once)


def _has_lines(path: Path) -> bool:
    """Say whether a file of JSON has one object a line, so that it need not be read as a whole."""
    with opened(path) as file:
        try:
            return isinstance(json.loads(file.readline(_BYTES)), dict) and bool(file.read(1))
        except (OSError, EOFError, ValueError, RecursionError, lzma.LZMAError, zlib.error):
            return False


def regular(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the files of an archive, each with the name that it shares with all others of its row: up to its first dot."""
    for member in archive:
        archive.members.clear()  # type: ignore[attr-defined]  # a kilobyte for each that was read
        if member.isfile():
            place = PurePosixPath(member.name)
            yield str(place.parent / place.name.partition(".")[0]), member


def members(path: Path, file: IO[bytes], stop: float = math.inf) -> Iterator[Raw]:
    """Yield the rows of a WebDataset from where a file is read on: members that follow each other and share a name.

    A picture is `image`, .cls the label, .txt the text, and .json adds its columns. `stop`: bytes behind which no row begins.
    """
    with tarfile.open(fileobj=file, mode="r|") as archive:
        before = itertools.takewhile(lambda item: item[1].offset < stop, regular(archive))
        for name, group in itertools.groupby(before, key=lambda item: item[0]):
            row: dict[str, Any] = {}
            for _, member in group:
                place, found = PurePosixPath(member.name), archive.extractfile(member)
                assert found is not None  # as of any regular file
                content = found.read()
                ending = place.name.partition(".")[2].lower()
                if ending in PICTURES:
                    row["image"] = {"bytes": content, "path": str(place)}
                elif ending in _MEMBERS:
                    row[_MEMBERS[ending]] = content.decode("utf-8").strip()
                elif ending == "json":
                    row |= json.loads(content)
                else:
                    row[ending] = None  # which is told as a column that is not read
            yield f"{path}: {name}", row


def _line_blocks(path: Path, begin: Any, size: int = 0) -> Iterator[Block]:
    byte, number = begin or (0, 1)
    with opened(path) as file:
        at(file, byte)
        while content := file.read(size or _BYTES):
            content += file.readline()
            block = Block(path, content, number=number, size=len(content))
            byte, number = byte + len(content), number + len(block)
            block.after = [byte, number]
            yield block


def _parquet_blocks(path: Path, begin: Any) -> Iterator[Block]:
    import pyarrow

    try:
        batches = parquet.batches(path, begin or 0)
    except (pyarrow.ArrowInvalid, OSError) as error:
        block = Block(path)
        block.faults.add(f"{path}: not parquet ({error})")
        yield block
        return
    number = begin or 0
    for batch in batches:
        yield Block(path, batch, number + batch.num_rows, number + 1, batch.nbytes)
        number += batch.num_rows


def listed(path: Path, rows: Iterable[tuple[Raw, Any]], faults: Faults, at_once: int = _ROWS) -> Iterator[Block]:
    """Yield rows, each with the place behind it, in blocks; `faults` are those that reading them meets."""

    def handed_on() -> Faults:
        found = Faults(math.inf)
        found.shown, found.count, faults.shown, faults.count = faults.shown, faults.count, [], 0
        return found

    block = Block(path)
    for raw, block.after in rows:
        assert isinstance(block.content, list)
        block.content.append(raw)
        block.size += sum(map(_size, raw[1].values()))
        if block.size >= _BYTES or len(block) >= at_once:
            block.faults = handed_on()
            yield block
            block = Block(path)
    block.faults = handed_on()
    yield block


def _size(value: Any) -> int:
    """Return about how many bytes a column has: those of texts, and of the content of files."""
    if isinstance(value, dict):
        return sum(len(item) for item in value.values() if isinstance(item, bytes))
    return len(value) if isinstance(value, (str, bytes)) else 0


_BLOCKS = {"jsonl": _line_blocks, "ndjson": _line_blocks, "json": _line_blocks, "parquet": _parquet_blocks}

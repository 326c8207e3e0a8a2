"""Parts of files that are read by themselves, on disk or on a hub: lines of a range of bytes, text of one, a row group, rows of a tar.

Where a part begins and ends depends on the file's bytes alone, so that whoever goes on with it, in another process or on
another day, reads the same rows and nothing before them. A file that has no such parts is one part.
"""

from __future__ import annotations

import csv
import lzma
import math
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import IO, Any

from pipeline.data import files, parquet, sources
from pipeline.data.documents import DOCUMENT, LARGE, Documents
from pipeline.data.files import LINES
from pipeline.data.sources import ARCHIVE, Faults, Raw
from pipeline.data.types.text import cut
from pipeline.system.errors import UserError

NEAR, FAR = 1 << 16, 1 << 20  # bytes of a part, about: of a file on disk, and of one that is asked for over a network
_TEXT = ("txt", "md", "markdown")
_MARKS = (b"\n\n", b"\n", b" ")
_FAR_COLUMN = 1 << 23  # bytes of a column that are asked for at once over a network
_BROKEN = (OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zlib.error, tarfile.TarError)


@dataclass(frozen=True)
class File:
    """A file as it was when it was looked at."""

    path: str  # on disk, or an address that fsspec opens
    size: int
    changed: str  # nanoseconds of its change on disk; the revision on a hub

    @classmethod
    def on_disk(cls, path: Path) -> File:
        """Return a file on disk; UserError where it is no longer there."""
        try:
            found = path.stat()
        except FileNotFoundError:
            raise UserError(f"{path}: was removed while it was read") from None
        return cls(str(path), found.st_size, str(found.st_mtime_ns))

    @property
    def far(self) -> bool:
        """Whether it is asked for over a network."""
        return "://" in self.path

    @property
    def name(self) -> str:
        """Its name with the folder that it lies in."""
        return "/".join(self.path.split("/")[-2:])

    @property
    def kind(self) -> str:
        """Its kind by its ending, compression aside."""
        return sources.kind(Path(self.path))

    @property
    def packed(self) -> bool:
        """Whether it is compressed as a whole."""
        return sources.kind(Path(self.path)) != Path(self.path).suffix.lstrip(".").lower()

    def open(self) -> IO[bytes]:
        """Open it for reading bytes, decompressed; UserError where it is another than the one that was looked at."""
        if not self.far:
            self.unchanged()
            return sources.opened(Path(self.path))
        import fsspec

        found: IO[bytes] = fsspec.open(self.path, "rb", compression="infer", block_size=FAR).open()
        return found

    def unchanged(self) -> None:
        """Raise UserError where a file on disk is another than the one that was looked at."""
        if File.on_disk(Path(self.path)) != self:
            raise UserError(f"{self.path}: was changed while it was read; run the same command again")


def parts(file: File, least: int) -> Sequence[tuple[int, int]]:
    """Return where the parts of a file begin and end: in bytes, or in row groups; UserError where it can't be read so.

    `least`: bytes of a part, more where there would be too many of them.
    """
    if file.kind == "parquet":
        with file.open() as opened:
            groups = _parquet(file, opened).metadata
            return [(group, group + 1) for group in range(groups.num_row_groups) if groups.row_group(group).num_rows]
    if file.kind == "json" and not file.packed:
        with file.open() as opened:
            if opened.read(FAR).lstrip()[:1] == b"[":
                raise UserError(f"{file.path}: is one JSON value, which can't be streamed; write one object a line (.jsonl)")
    if not file.packed and (file.kind in LINES or (file.kind in _TEXT and file.size > LARGE)):
        return [(start, min(start + least, file.size)) for start in range(0, file.size, least)]
    if file.kind == ARCHIVE and not file.packed and not file.far:
        return _rows_of_archive(file, least)
    if file.far and file.kind not in LINES:
        raise UserError(f"{file.path}: can't be streamed from a hub; parquet and lines of JSON can")
    return [(0, file.size)]


def read(file: File, start: int, stop: int, skip: int, documents: Documents, faults: Faults) -> Iterator[Raw]:
    """Yield the raw rows of a part from row `skip` on, each with where it stands; what is broken is a fault."""
    read = skip
    try:
        for raw in _rows(file, start, stop, skip, documents, faults):
            read += 1
            yield raw
    except _BROKEN as error:
        if file.far and not isinstance(error, ValueError):
            raise  # of the network, which may be asked again
        faults.add(f"{file.path}: can't be read after row {read:,} of its part ({' '.join(str(error).split())[:200]})")


def _rows(file: File, start: int, stop: int, skip: int, documents: Documents, faults: Faults) -> Iterator[Raw]:
    if file.kind == "parquet":
        yield from _row_group(file, start, skip)
    elif file.kind in LINES:
        yield from _lines(file, start, stop if not file.packed else -1, skip, faults)
    elif file.kind in _TEXT and not file.packed and file.size > LARGE:
        yield from _text(file, start, stop, documents, skip)
    elif file.kind == ARCHIVE:
        with file.open() as opened:
            opened.seek(start)
            yield from islice(files.members(Path(file.path), opened, stop - start if not file.packed else math.inf), skip, None)
    else:
        file.unchanged()
        yield from islice(files.read([Path(file.path)], documents, []), skip, None)


def _rows_of_archive(file: File, least: int) -> list[tuple[int, int]]:
    """Return where parts of an archive begin and end, each of whole rows; the heads of its members are all that is read."""
    starts: list[int] = []
    try:
        with file.open() as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            for _, row in groupby(files.regular(archive), key=lambda item: item[0]):
                at = next(row)[1].offset
                if not starts or at >= starts[-1] + least:
                    starts.append(at)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{file.path}: can't be read ({' '.join(str(error).split())[:200]})") from None
    return list(pairwise([*starts, file.size]))


def _lines(file: File, start: int, stop: int, skip: int, faults: Faults) -> Iterator[Raw]:
    """Yield the lines of JSON that begin from `start` on and before `stop`, to the end where that is -1."""
    with file.open() as opened:
        at = start
        if start:  # the line that begins before it is of the part before
            opened.seek(start - 1)
            at += len(opened.readline()) - 1
        number = 0
        while (stop < 0 or at < stop) and (line := opened.readline()):
            where, at = f"{file.path}@{at}", at + len(line)
            if not line.strip():
                continue
            number += 1
            if number <= skip:
                continue
            try:
                text = line.decode("utf-8-sig" if at == len(line) else "utf-8")
            except UnicodeDecodeError as error:
                faults.add(f"{where}: not UTF-8 (byte {error.object[error.start]:#04x} at column {error.start + 1})")
                continue
            if (row := sources.parsed(text, where, faults)) is not None:
                yield where, row


def _text(file: File, start: int, stop: int, documents: Documents, skip: int) -> Iterator[Raw]:
    """Yield the documents of a range of text, which begins and ends behind a mark: a separator, else a blank line."""
    marks = (documents.separator.encode(),) if documents.separator else _MARKS
    with file.open() as opened:
        first, last = (_behind(opened, at, file.size, marks) for at in (start, stop))
        opened.seek(first)
        found = opened.read(last - first)
    try:
        whole = found.decode("utf-8-sig" if not first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {found[error.start]:#04x} at offset {first + error.start}") from None
    cuts = whole.split(documents.separator) if documents.separator else cut(whole, documents.longest or DOCUMENT)
    for number, part in enumerate((part for part in cuts if part.strip()), start=1):
        if number > skip:
            yield f"{file.path}@{first}, document {number}", {"text": part}


def _behind(opened: IO[bytes], at: int, size: int, marks: Sequence[bytes]) -> int:
    """Return the position behind the first mark from `at` on; that of a letter where there is none for two documents."""
    if at == 0 or at >= size:
        return min(at, size)
    opened.seek(at)
    window = opened.read(2 * DOCUMENT if len(marks) > 1 else LARGE)
    for mark in marks:
        if (found := window.find(mark)) >= 0:
            return at + found + len(mark)
    if len(marks) == 1:
        raise ValueError(f"no separator in {LARGE:,} bytes from byte {at:,} on; a document has at most that many")
    return at + next((number for number, byte in enumerate(window[:4]) if byte & 0xC0 != 0x80), 0)


def _row_group(file: File, group: int, skip: int) -> Iterator[Raw]:
    with file.open() as opened:
        table = _parquet(file, opened)
        first = sum(table.metadata.row_group(number).num_rows for number in range(group))
        seen = 0
        for batch in parquet.of_group(table, group):
            passed = min(max(0, skip - seen), batch.num_rows)
            for number, row in enumerate(batch.slice(passed).to_pylist(), start=first + seen + passed + 1):
                yield f"{file.path}: row {number}", row
            seen += batch.num_rows


def _parquet(file: File, opened: IO[bytes]) -> Any:
    import pyarrow

    try:
        return parquet.opened(opened, _FAR_COLUMN if file.far else parquet.BYTES)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if file.far and isinstance(error, OSError):
            raise
        raise UserError(f"{file.path}: not parquet ({' '.join(str(error).split())[:200]})") from None


def told(text: str) -> str:
    """Return a text in which `FILE@BYTE`, as a part says where a row stands, is `FILE:LINE`, for files on disk."""
    found = re.match(r"(.+?)@(\d+)(.*)", text, re.DOTALL)
    if not found:
        return text
    path, byte, rest = Path(found[1]), int(found[2]), found[3]
    if sources.kind(path) in _TEXT or not path.is_file() or sources.kind(path) != path.suffix.lstrip(".").lower():
        return f"{path}, byte {byte:,}{rest}"
    lines, left = 1, byte
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, FAR))):
            lines, left = lines + chunk.count(b"\n"), left - len(chunk)
    return f"{path}:{lines}{rest}"

"""Where rows come from: files of any common kind, also inside an installed distribution.

Files are read in blocks, whose rows are parsed apart, so that any process can do it. Each row is yielded with its origin,
such as `chats.jsonl:12`. Lines that are not UTF-8 or not JSON are the user's fault: they are gathered, the first ten are
shown, the rest is counted, and nothing is trained.
"""

from __future__ import annotations

import csv
import glob
import importlib.metadata
import io
import itertools
import json
import lzma
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.data import encodings, parquet
from pipeline.data.documents import Documents, NotText, at
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 10  # faults printed before the rest is only counted
_MOST = 10_000  # faults after which nothing more is read: that is not the file that was meant
_ABOUT = r"(readme|license|licence|changelog|citation)\b.*|dataset_infos?\.json|state\.json"  # names of what is no data
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_DEEP = "brackets are nested thousands of levels deep"
_BYTES, _ROWS = 1 << 20, 1000  # of a block, at most, save for a single longer row; lines are not counted
Raw = tuple[str, dict[str, Any]]  # where it stands, and its columns


class Faults:
    """Faults of one source: the first ten as lines, the others as a count; of very many the rest is not looked for."""

    def __init__(self, most: float = _MOST) -> None:
        """`most`: how many end the reading, with UserError."""
        self.shown: list[str] = []
        self.count, self._most = 0, most

    def add(self, line: str, more: Callable[[], str] = str) -> None:
        """Take note of one more fault; `more` gives the end of a line that is shown."""
        self.count += 1
        if self.count <= _SHOWN:
            self.shown.append(line + more())
        if self.count >= self._most:
            self.stop()

    def take(self, others: Faults) -> None:
        """Take note of what was found elsewhere, behind all that is noted here."""
        self.shown += others.shown[: _SHOWN - len(self.shown)]
        self.count = int(min(self.count + others.count, self._most))
        if self.count >= self._most:
            self.stop()

    def stop(self) -> None:
        """Raise UserError if there was any."""
        if self.count:
            rest = self.count - len(self.shown)
            least = "at least " if self.count >= _MOST else ""
            raise UserError(*self.shown, *([f"... and {least}{rest:,} more faults of this kind"] if rest else []))


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

    def rows(self, faults: Faults) -> Iterator[Raw]:
        """Yield its rows; what is broken is a fault."""
        if isinstance(self.content, bytes):
            yield from _parsed_lines(self.path, _decoded(io.BytesIO(self.content), self.path, faults, self.number), faults)
        elif isinstance(self.content, list):
            yield from self.content
        else:
            for number, row in enumerate(self.content.to_pylist(), start=self.number):
                yield f"{self.path}: row {number}", row

    def has(self, column: str) -> bool:
        """Say whether a row of it may have a column."""
        if isinstance(self.content, bytes):
            return column.encode() in self.content
        return (
            any(column in row for _, row in self.content)
            if isinstance(self.content, list)
            else column in self.content.schema.names
        )


def opened(path: Path) -> IO[bytes]:
    """Open a file for reading bytes, through the decompressor that its ending names."""
    if path.suffix == ".gz":
        import gzip

        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".bz2":
        import bz2

        return bz2.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def kind(path: Path) -> str:
    """Return a file's kind by its ending, compression aside: `jsonl` for notes.jsonl.gz."""
    inner = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    return inner.suffix.lstrip(".").lower()


def decoded_as(path: Path) -> str:
    """Return a file's kind with its compression: `jsonl.gz`."""
    return kind(path) + (path.suffix if path.suffix in _COMPRESSIONS else "")


def _lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    with opened(path) as file:
        yield from _decoded(file, path, faults)


def _decoded(lines: Iterable[bytes], path: Path, faults: Faults, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield the numbers and texts of lines of a file; what is not UTF-8 is a fault."""
    for number, line in enumerate(lines, start=first):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {error.object[error.start]:#04x} at column {error.start + 1}"
            faults.add(f"{path}:{number}: not UTF-8 ({where})", lambda: encodings.remedy(path, opened))


def _whole(path: Path, faults: Faults) -> str:
    try:
        with opened(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte {error.object[error.start]:#04x} at offset {error.start}"
        faults.add(f"{path}: not UTF-8 ({where})", lambda: encodings.remedy(path, opened))
        return ""


def _read_text(path: Path, faults: Faults) -> Iterator[Raw]:
    yield str(path), {"text": _whole(path, faults)}


def _read_lines(path: Path, faults: Faults) -> Iterator[Raw]:
    for number, line in _lines(path, faults):
        if text := line.strip():
            yield f"{path}:{number}", {"text": text}


def _parsed_lines(path: Path, lines: Iterable[tuple[int, str]], faults: Faults) -> Iterator[Raw]:
    for number, line in lines:
        if line and not line.isspace() and (row := parsed(line, f"{path}:{number}", faults)) is not None:
            yield f"{path}:{number}", row


def parsed(line: str, where: str, faults: Faults) -> dict[str, Any] | None:
    """Return the columns that a line of JSON holds; where it holds none, that is a fault of what stands at `where`."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        faults.add(f"{where}: not JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        faults.add(f"{where}: {_DEEP}")
    else:
        if "\\ud" in line.lower() and not _encodable(row):
            faults.add(f"{where}: half of a surrogate pair (\\ud...), which is no text")
        elif isinstance(row, dict):
            return row
        else:
            faults.add(f"{where}: a {type(row).__name__}, not an object with columns")
    return None


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_json(path: Path, faults: Faults) -> Iterator[Raw]:
    text = _whole(path, faults)
    try:
        loaded = json.loads(text) if text else []
    except json.JSONDecodeError as error:
        faults.add(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})")
        return
    except RecursionError:
        faults.add(f"{path}: {_DEEP}")
        return
    for number, row in enumerate(loaded if isinstance(loaded, list) else [loaded], start=1):
        if isinstance(row, dict):
            yield f"{path}: row {number}", row
        else:
            faults.add(f"{path}: row {number}: a {type(row).__name__}, not an object with columns")


def _read_csv(path: Path, faults: Faults) -> Iterator[Raw]:
    csv.field_size_limit(sys.maxsize)
    lines = (line for _, line in _lines(path, faults))
    header = next(lines, "")
    if not header.strip():
        return
    names = re.sub(r'"[^"]*"', "", header)
    delimiter = max(",;\t|", key=names.count) if kind(path) == "csv" else "\t"
    reader = csv.DictReader(itertools.chain([header], lines), delimiter=delimiter)
    for number, row in enumerate(reader, start=2):
        if None in row or None in row.values():
            faults.add(f"{path}: row {number}: not as many cells as the header names, cut at {delimiter!r}")
        else:
            yield f"{path}: row {number}", dict(row)


def _line_blocks(path: Path, begin: Any) -> Iterator[Block]:
    byte, number = begin or (0, 1)
    with opened(path) as file:
        at(file, byte)
        while content := file.read(_BYTES):
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


def listed(path: Path, rows: Iterable[tuple[Raw, Any]], faults: Faults) -> Iterator[Block]:
    """Yield rows, each with the place behind it, in blocks; `faults` are those that reading them meets."""

    def handed_on() -> Faults:
        found = Faults(math.inf)
        found.shown, found.count, faults.shown, faults.count = faults.shown, faults.count, [], 0
        return found

    block = Block(path)
    for raw, block.after in rows:
        assert isinstance(block.content, list)
        block.content.append(raw)
        block.size += sum(len(value) for value in raw[1].values() if isinstance(value, str))
        if block.size >= _BYTES or len(block) >= _ROWS:
            block.faults = handed_on()
            yield block
            block = Block(path)
    block.faults = handed_on()
    yield block


_BLOCKS = {
    "jsonl": _line_blocks,
    "ndjson": _line_blocks,
    "parquet": _parquet_blocks,
}  # of files that come in blocks by themselves
_READERS: dict[str, Callable[[Path, Faults], Iterator[Raw]]] = {
    "txt": _read_text, "md": _read_text, "markdown": _read_text, "json": _read_json, "csv": _read_csv, "tsv": _read_csv,
    "conll": _read_text, "iob": _read_text, "bio": _read_text,
}  # fmt: skip
KINDS = {*_BLOCKS, *_READERS}  # of files that are read


def expand(pattern: str) -> list[Path]:
    """Return the readable files that a path, a folder or a glob names, in order; UserError if there is none."""
    path = Path(pattern)
    if path.is_dir():
        found = sorted(item for item in path.rglob("*") if item.is_file() and kind(item) in KINDS and not _about(item, path))
    else:
        found = [path] if path.is_file() else sorted(Path(item) for item in glob.glob(pattern, recursive=True))
    if not found:
        raise UserError(
            f"{pattern}: no {'readable file in that folder' if path.is_dir() else 'such file, and no file matches it'}"
        )
    unknown = [item for item in found if kind(item) not in KINDS]
    if unknown:
        known = ", ".join(sorted(KINDS))
        raise UserError(*(f"{item}: can't read .{kind(item)} files; known are {known}, also with {', '.join(_COMPRESSIONS)}"
                          for item in unknown[:_SHOWN]))  # fmt: skip
    return found


def skipped(pattern: str) -> str:
    """Return in words which files of a folder `expand` passes over since it can't read them: `2 .zip files`; "" for none."""
    folder = Path(pattern)
    if not folder.is_dir():
        return ""
    others = (item for item in folder.rglob("*") if item.is_file() and kind(item) not in KINDS and not _about(item, folder))
    counts = Counter(item.suffix or item.name for item in others)
    told = (f"{count:,} {ending} file{'s' if count > 1 else ''}" for ending, count in counts.most_common(_SHOWN))
    return ", ".join(told)


def _about(path: Path, folder: Path) -> bool:
    """Say whether a file of a folder is hidden or tells of the data, rather than holding any."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return hidden or bool(re.fullmatch(_ABOUT, path.name, re.IGNORECASE))


def read_files(
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
    paths: Sequence[Path], documents: Documents | None = None, begin: Any = None, by_line: bool = False
) -> Iterator[Block]:
    """Yield the raw rows of files in blocks, as `read_files` has them; `begin`: what a block says of the place behind it."""
    first, place = begin or (0, None)
    small = None
    for number, path in enumerate(paths[first:], start=first):
        for block in _blocks(path, documents, place, by_line):
            block.after = [number, block.after] if block.after is not None else [number + 1, None]
            if small is not None:
                if (joined := _joined(small, block)) is not None:
                    block = joined
                else:
                    yield small
                small = None
            if isinstance(block.content, list) and block.size < _BYTES and len(block) < _ROWS:
                small = block  # which the next file may add to
            else:
                yield block
        place = None
    if small is not None:
        yield small


def _joined(one: Block, other: Block) -> Block | None:
    """Return two blocks of parsed rows as one, if that is not too large."""
    if not isinstance(one.content, list) or not isinstance(other.content, list):
        return None
    if one.size + other.size > _BYTES or len(one) + len(other) > _ROWS:
        return None
    one.faults.take(other.faults)
    return replace(
        other, content=one.content + other.content, size=one.size + other.size, notes=one.notes + other.notes, faults=one.faults
    )


def _blocks(path: Path, documents: Documents | None, begin: Any, by_line: bool) -> Iterator[Block]:
    """Yield the blocks of a file, the last of which holds what is to be said of it."""
    read, notes, faults = 0, list[str](), Faults(math.inf)
    try:
        for block in _of(path, documents, begin, by_line, notes, faults):
            yield block
            read += len(block)
    except NotText as error:
        faults.add(f"{path}: {error}", lambda: encodings.remedy(path, opened))
    except (OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zlib.error) as error:
        faults.add(f"{path}: can't be read{f' after row {read:,}' if read else ''} ({' '.join(str(error).split())[:200]})")
    if notes or faults.count:
        yield Block(path, notes=notes, faults=faults)


def _of(
    path: Path, documents: Documents | None, begin: Any, by_line: bool, notes: list[str], faults: Faults
) -> Iterator[Block]:
    if kind(path) in _BLOCKS or (kind(path) == "json" and _has_lines(path)):
        yield from _BLOCKS.get(kind(path), _line_blocks)(path, begin)
        return
    if documents and is_text(path):
        cut = documents.read(path, opened, notes, begin)
        yield from listed(path, (((where, {"text": text}), place) for where, text, place in cut), faults)
        return
    rows = _read_lines(path, faults) if by_line and is_text(path) else _READERS[kind(path)](path, faults)
    numbered = ((raw, number) for number, raw in enumerate(rows, start=1))
    yield from listed(path, itertools.islice(numbered, begin or 0, None), faults)


def _has_lines(path: Path) -> bool:
    """Say whether a file of JSON has one object a line, so that it need not be read as a whole."""
    with opened(path) as file:
        try:
            return isinstance(json.loads(file.readline(_BYTES)), dict) and bool(file.read(1))
        except (OSError, EOFError, ValueError, RecursionError, lzma.LZMAError, zlib.error):
            return False


def is_text(path: Path) -> bool:
    """Say whether a file is plain text."""
    return _READERS.get(kind(path)) is _read_text


def package_files(distribution: str, pattern: str) -> list[Path]:
    """Return files of an installed distribution by a glob, without importing it; UserError naming the remedy."""
    try:
        listed = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the package {distribution} is not installed; `make setup-data` installs it") from None
    found = sorted(Path(str(item.locate())) for item in listed if item.match(pattern))
    if not found:
        raise UserError(f"the package {distribution} holds no {pattern}; `make setup-data` installs the version that does")
    return found

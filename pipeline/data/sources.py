"""Where rows come from: files of any common kind, also inside an installed distribution.

Each row comes with its origin, such as `chats.jsonl:12`. Lines that are not UTF-8 or not JSON are the user's fault: they are
gathered, the first ten are shown, the rest is counted, and nothing is trained. pipeline/data/files.py reads whole files.
"""

from __future__ import annotations

import csv
import glob
import importlib.metadata
import io
import itertools
import json
import lzma
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pipeline.data import encodings
from pipeline.system.errors import UserError
from pipeline.system.words import counted

_SHOWN = 10  # faults printed before the rest is only counted
_LONG = 80  # characters of a reason that is written once
_MOST = 10_000  # faults after which nothing more is read: that is not the file that was meant
_ABOUT = r"(readme|license|licence|changelog|citation)\b.*|dataset_infos?\.json|state\.json"  # names of what is no data
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_DEEP = "brackets are nested thousands of levels deep"
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
        """Raise UserError if there was any; what many rows have in common is told of the first."""
        if self.count:
            rest = self.count - len(self.shown)
            least = "at least " if self.count >= _MOST else ""
            raise UserError(*_shortened(self.shown), *([f"... and {least}{rest:,} more faults of this kind"] if rest else []))


def _shortened(faults: Iterable[str]) -> Iterator[str]:
    """Yield lines of faults; a long reason that stood in an earlier one is not repeated."""
    told: set[str] = set()
    for line in faults:
        found = re.fullmatch(r"(.+?(?::|: row )\d+): (.+)", line)
        where, reason = found.groups() if found else ("", line)
        yield f"{where}: the same" if reason in told else line
        if found and len(reason) > _LONG:
            told.add(reason)


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
        yield from decoded(file, path, faults)


def decoded(lines: Iterable[bytes], path: Path, faults: Faults, first: int = 1) -> Iterator[tuple[int, str]]:
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


def read_lines(path: Path, faults: Faults) -> Iterator[Raw]:
    """Yield the lines of a text file that are not blank, each as a text."""
    for number, line in _lines(path, faults):
        if text := line.strip():
            yield f"{path}:{number}", {"text": text}


def parsed_lines(path: Path, lines: Iterable[tuple[int, str]], faults: Faults) -> Iterator[Raw]:
    """Yield the rows that lines of JSON hold, each line with its number; what is broken is a fault."""
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
    if twice := sorted(name for name, count in Counter(reader.fieldnames or ()).items() if count > 1):
        faults.add(
            f"{path}: row 1: two columns are named {twice[0]!r}, of which one would be lost; give one of them another name"
        )
        return
    for number, row in enumerate(reader, start=2):
        if None in row or None in row.values():
            faults.add(f"{path}: row {number}: not as many cells as the header names, cut at {delimiter!r}")
        else:
            yield f"{path}: row {number}", dict(row)


READERS: dict[str, Callable[[Path, Faults], Iterator[Raw]]] = {  # of files that are parsed from their beginning to their end
    "txt": _read_text, "md": _read_text, "markdown": _read_text, "json": _read_json, "csv": _read_csv, "tsv": _read_csv,
    "conll": _read_text, "iob": _read_text, "bio": _read_text,
}  # fmt: skip
PICTURES = frozenset({"png", "jpg", "jpeg", "gif", "bmp", "webp", "tif", "tiff", "ppm", "pgm"})  # of files that are one picture
ARCHIVE = "tar"  # of files that hold others, as WebDataset has them
KINDS = frozenset({"jsonl", "ndjson", "parquet", *READERS})  # of files that are read


def is_text(path: Path) -> bool:
    """Say whether a file is plain text."""
    return READERS.get(kind(path)) is _read_text


def expand(pattern: str, kinds: Collection[str] = KINDS) -> list[Path]:
    """Return the files of some kinds that a path, a folder or a glob names, in order; UserError if there is none."""
    path = Path(pattern)
    if path.is_dir():
        found = sorted(item for item in path.rglob("*") if item.is_file() and kind(item) in kinds and not _about(item, path))
    else:
        found = [path] if path.is_file() else sorted(Path(item) for item in glob.glob(pattern, recursive=True))
    if not found:
        raise UserError(
            f"{pattern}: no {'readable file in that folder' if path.is_dir() else 'such file, and no file matches it'}"
        )
    unknown = [item for item in found if kind(item) not in kinds]
    if unknown:
        known = ", ".join(sorted(kinds))
        raise UserError(*(f"{item}: can't read .{kind(item)} files; known are {known}, also with {', '.join(_COMPRESSIONS)}"
                          for item in unknown[:_SHOWN]))  # fmt: skip
    return found


def apart(files: Sequence[Path], beside: Collection[str]) -> tuple[Sequence[Path], Sequence[Path]]:
    """Return the files that hold rows, and those of some kinds which a table names that lies in their folder or above it.

    What a table may name counts as content, also where the table is the only file that was given.
    """
    if not beside:
        return files, ()
    tables = [path for path in files if kind(path) not in beside]
    folders = {path.parent for path in tables if kind(path) != ARCHIVE}  # which holds itself what its rows name
    alone = [path for path in files if kind(path) in beside and not folders.intersection(path.parents)]
    named = {item for folder in folders for item in folder.rglob("*") if kind(item) in beside and item.is_file()}
    return sorted([*tables, *alone]), sorted(named)


def skipped(pattern: str, kinds: Collection[str] = KINDS) -> str:
    """Return in words which files of a folder `expand` passes over since it can't read them: `2 .zip files`; "" for none."""
    folder = Path(pattern)
    if not folder.is_dir():
        return ""
    others = (item for item in folder.rglob("*") if item.is_file() and kind(item) not in kinds and not _about(item, folder))
    counts = Counter(item.suffix or item.name for item in others)
    told = (counted(count, f"{ending} file") for ending, count in counts.most_common(_SHOWN))
    return ", ".join(told)


def _about(path: Path, folder: Path) -> bool:
    """Say whether a file of a folder is hidden or tells of the data, rather than holding any."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return hidden or bool(re.fullmatch(_ABOUT, path.name, re.IGNORECASE))


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

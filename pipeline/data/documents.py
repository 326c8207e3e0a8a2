"""Text files → documents: a small file is one, a large one is cut and never held in memory.

Where a recipe names a separator, that is what stands between two documents. Else a file of more than a million characters
is cut into documents of about 20,000, at headings and blank lines, or at line ends or spaces where it has none of these.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LARGE = 1_000_000  # characters of a file from which on it is cut
DOCUMENT = 20_000  # characters of a document, about
_CHUNK = 1 << 20  # bytes that are read at once
_HEADING = re.compile(r"\s*(#{1,6} |(?:CHAPTER|BOOK|PART|ACT|SCENE|SECTION)\b)", re.IGNORECASE)
_MARKS = {"\n\n": "blank lines", "\n": "line ends", " ": "spaces"}
Open = Callable[[Path], IO[bytes]]


class NotText(ValueError):
    """A file that is not UTF-8; the text says where."""


@dataclass(frozen=True)
class Documents:
    """How a recipe wants its text files cut."""

    longest: int = 0  # characters of a part, where the recipe says so
    separator: str = ""

    def read(self, path: Path, open: Open, notes: list[str]) -> Iterator[tuple[str, str]]:
        """Yield where each document of a file stands and its text; NotText where it is none. `notes` says how it was cut."""
        if self.separator:
            found = _with(path, open, self.separator)
            at = f"at each {self.separator!r}"
        elif (whole := _small(path, open, LARGE)) is not None:
            yield str(path), whole
            return
        else:
            longest = self.longest or DOCUMENT
            mark = next((mark for mark in _MARKS if _fits(path, open, mark, 2 * longest)), "")
            found = _parts(path, open, mark, longest, headings=not self.longest)
            name = _MARKS.get(mark, f"every {longest:,} characters")
            at = f"at {'headings and ' if mark == next(iter(_MARKS)) and not self.longest else ''}{name}"
        number = 0
        for number, part in enumerate((part for part in found if part.strip()), start=1):
            yield f"{path}, part {number}", part
        notes.append(f"{path.name} is cut into {number:,} documents {at}")


def _characters(path: Path, open: Open) -> Iterator[str]:
    """Yield the text of a file in chunks."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read = 0
    with open(path) as file:
        while True:
            chunk = file.read(_CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                where = read - pending + error.start
                raise NotText(f"not UTF-8 (byte {error.object[error.start]:#04x} at offset {where})") from None
            read += len(chunk)
            if text:
                yield text
            if not chunk:
                return


def _small(path: Path, open: Open, most: int) -> str | None:
    """Return the text of a file of at most so many characters; None for a longer one."""
    held, size = [], 0
    for chunk in _characters(path, open):
        held.append(chunk)
        size += len(chunk)
        if size > most:
            return None
    return "".join(held)


def _pieces(path: Path, open: Open, mark: str, longest: int) -> Iterator[str]:
    """Yield what stands between marks; a piece of more than `longest` characters may come in several."""
    held = ""
    for chunk in _characters(path, open):
        *pieces, held = (held + chunk).split(mark)
        yield from pieces
        if len(held) > longest + len(mark):
            yield held
            held = ""
    yield held


def _fits(path: Path, open: Open, mark: str, longest: int) -> bool:
    """Say whether no piece between marks has more than so many characters."""
    return all(len(piece) <= longest for piece in _pieces(path, open, mark, longest))


def _parts(path: Path, open: Open, mark: str, longest: int, headings: bool) -> Iterator[str]:
    """Yield parts of about `longest` characters, the same as `pipeline.data.types.text.cut` makes of a whole text.

    With `headings` one that comes after a fourth of that begins a new part. Without a mark parts are slices.
    """
    if not mark:
        yield from _slices(path, open, longest)
        return
    part: str | None = None
    for piece in _pieces(path, open, mark, 2 * longest):
        fits = part is not None and len(part) + len(mark) + len(piece) <= longest
        if part is not None and fits and not (headings and len(part) > longest // 4 and _HEADING.match(piece)):
            part += mark + piece
        else:
            if part is not None:
                yield part
            part = piece
    if part is not None:
        yield part


def _slices(path: Path, open: Open, longest: int) -> Iterator[str]:
    held = ""
    for chunk in _characters(path, open):
        held += chunk
        whole = len(held) // longest * longest
        yield from (held[start : start + longest] for start in range(0, whole, longest))
        held = held[whole:]
    yield held


def _with(path: Path, open: Open, separator: str) -> Iterator[str]:
    """Yield what stands between separators; NotText where that is too much for one document."""
    for piece in _pieces(path, open, separator, LARGE):
        if len(piece) > LARGE:
            raise NotText(f"{len(piece):,} characters without the separator {separator!r}; a document has at most {LARGE:,}")
        yield piece

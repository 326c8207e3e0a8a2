"""Text files → documents: a small file is one, a large one is cut and never held in memory.

Where a recipe names a separator, that is what stands between two documents. Else a file of more than a million characters
is cut into documents of about 20,000, at headings and blank lines, or at line ends or spaces where it has none of these.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LARGE = 1_000_000  # characters of a file from which on it is cut
DOCUMENT = 20_000  # characters of a document, about
_CHUNK = 1 << 20  # bytes that are read at once
_HEADING = re.compile(r"\s*(#{1,6} |(?:CHAPTER|BOOK|PART|ACT|SCENE|SECTION)\b)", re.IGNORECASE)
_BLANK = "\n\n"
_MARKS = {_BLANK: "blank lines", "\n": "line ends", " ": "spaces"}
Open = Callable[[Path], IO[bytes]]
Place = list[int | str]  # where a document begins: the byte, how many were before it, and the mark at which the file is cut
_End = Callable[[str, int, bool], tuple[int, int] | None]
"""(text, begin, last) → where the document that begins there ends, and where the next one begins; None where more text is needed."""


class NotText(ValueError):
    """A file that is not UTF-8; the text says where."""


@dataclass(frozen=True)
class Documents:
    """How a recipe wants its text files cut."""

    longest: int = 0  # characters of a part, where the recipe says so
    separator: str = ""

    def read(
        self, path: Path, open: Open, notes: list[str], place: Place | None = None
    ) -> Iterator[tuple[str, str, Place | None]]:
        """Yield where each document of a file stands, its text, and the place behind it; NotText where it is none.

        `place`: where to go on; `notes` says how the file was cut. A file that is one document has no place behind it.
        """
        if place is None and not self.separator and (whole := _small(path, open, LARGE)) is not None:
            yield str(path), whole, None
            return
        longest = self.longest or DOCUMENT
        byte, number, mark = place or (0, 0, self.separator or _mark(path, open, 2 * longest))
        for part, behind in _cut(path, open, int(byte), self._end(str(mark), longest)):
            if part.strip():
                number = int(number) + 1
                yield f"{path}, part {number}", part, [behind, number, mark]
        notes.append(f"{path.name} is cut into {number:,} documents {self._at(str(mark), longest)}")

    def _end(self, mark: str, longest: int) -> _End:
        if self.separator:
            return functools.partial(_at_separator, self.separator)
        headings = not self.longest and mark in (_BLANK, "\n")
        return functools.partial(_at_mark, mark, longest, headings) if mark else functools.partial(_at_length, longest)

    def _at(self, mark: str, longest: int) -> str:
        """Return in words where a file is cut."""
        if self.separator:
            return f"at each {self.separator!r}"
        headings = "headings and " if mark == _BLANK and not self.longest else ""
        return f"at {headings}{_MARKS.get(mark, f'every {longest:,} characters')}"


def _characters(path: Path, open: Open, begin: int = 0) -> Iterator[str]:
    """Yield the text of a file from a byte on, in chunks, with the mark of its encoding if it has one."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path) as file:
        read = at(file, begin)
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


def at(file: IO[bytes], byte: int) -> int:
    """Go to a byte of a file that was just opened, of what is decompressed if it is; return that byte."""
    if byte and file.seekable():
        file.seek(byte)
    else:
        for start in range(0, byte, _CHUNK):
            file.read(min(_CHUNK, byte - start))
    return byte


def _small(path: Path, open: Open, most: int) -> str | None:
    """Return the text of a file of at most so many characters; None for a longer one."""
    held, size = [], 0
    for chunk in _characters(path, open):
        held.append(chunk)
        size += len(chunk)
        if size > most:
            return None
    return "".join(held).removeprefix("\ufeff")


def _mark(path: Path, open: Open, longest: int) -> str:
    """Return the first mark between which a file has no piece of more than so many characters; none where there is none."""
    return next((mark for mark in _MARKS if _fits(path, open, mark, longest)), "")


def _fits(path: Path, open: Open, mark: str, longest: int) -> bool:
    held, window = "", longest + len(mark)
    for chunk in _characters(path, open):
        held, begin = held + chunk, 0
        while len(held) - begin >= window:
            found = held.rfind(mark, begin, begin + window)
            if found < 0:
                return False
            begin = found + len(mark)
        held = held[begin:]
    return len(held) <= longest


def _cut(path: Path, open: Open, byte: int, end: _End) -> Iterator[tuple[str, int]]:
    """Yield documents from a byte on, each with the byte where the next one begins; the text is never held as a whole."""
    held, begin = "", 0
    for chunk in _characters(path, open, byte):
        if not byte and not held and chunk.startswith("\ufeff"):
            byte, chunk = 3, chunk[1:]  # the mark of the encoding, which is no text
        held, begin = held[begin:] + chunk, 0
        while found := end(held, begin, False):
            stop, after = found
            byte += _size(held[begin:after])
            yield held[begin:stop], byte
            begin = after
    while found := end(held, begin, True):
        stop, after = found
        byte += _size(held[begin:after])
        yield held[begin:stop], byte
        begin = after
    yield held[begin:], byte + _size(held[begin:])


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _at_mark(mark: str, longest: int, headings: bool, text: str, begin: int, last: bool) -> tuple[int, int] | None:
    """Find the last mark up to which a document has at most `longest` characters, the first one where there is none.

    With `headings` a document ends before one that comes after a fourth of that. Documents are those that
    `pipeline.data.types.text.cut` makes of a whole text.
    """
    window = begin + longest + len(mark)
    if last and len(text) - begin <= longest:
        stop, more = len(text), False
    elif len(text) < window and not last:
        return None
    elif (stop := text.rfind(mark, begin, window)) >= 0:
        same = stop - begin - len(text[begin:stop].rstrip(mark[0]))
        stop, more = stop - same % len(mark), True  # as a split from the left finds marks in a run of line ends
    elif (stop := text.find(mark, begin)) >= 0:
        return stop, stop + len(mark)
    else:
        return None
    place = begin
    for piece in text[begin:stop].split(mark) if headings else ():
        if place - len(mark) - begin > longest // 4 and _HEADING.match(piece):
            return place - len(mark), place
        place += len(piece) + len(mark)
    return (stop, stop + len(mark)) if more else None


def _at_length(longest: int, text: str, begin: int, last: bool) -> tuple[int, int] | None:
    stop = begin + longest
    return (stop, stop) if stop < len(text) or (stop == len(text) and not last) else None


def _at_separator(separator: str, text: str, begin: int, last: bool) -> tuple[int, int] | None:
    """Find the next separator; NotText where that is too far for one document."""
    stop = text.find(separator, begin)
    size = (stop if stop >= 0 else len(text)) - begin
    if size > LARGE:
        raise NotText(f"{size:,} characters without the separator {separator!r}; a document has at most {LARGE:,}")
    return (stop, stop + len(separator)) if stop >= 0 else None

"""What a file that is not UTF-8 is likely to be, and how to convert it."""

from __future__ import annotations

import codecs
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import IO

_HEAD = 1 << 16  # bytes that are looked at
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def remedy(path: Path, open: Callable[[Path], IO[bytes]]) -> str:
    """Return, as the end of a refusal, the encoding that a file seems to have and the command that converts it."""
    with open(path) as file:
        head = file.read(_HEAD)
    found = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if not found and _mostly(head):
        return ""
    found = found or _guess(head)
    if not found:
        return "; convert it to UTF-8"
    old, new = (shlex.quote(str(one)) for one in (path, path.with_name(f"utf-8-{path.name}")))
    return f"; it looks like {found}: `iconv -f {found} -t UTF-8 {old} > {new}` converts it"


def _mostly(head: bytes) -> bool:
    """Say whether most of what isn't ASCII is UTF-8, or hardly anything isn't."""
    text = head.decode("utf-8", errors="replace")
    broken = text.count("\ufffd")
    return 2 * broken < sum(letter > "\x7f" for letter in text) or broken < len(text) / 500


def _guess(head: bytes) -> str | None:
    """Return the likeliest encoding; of those that write one byte a letter in Latin script, the one of Western Europe."""
    import charset_normalizer

    found = charset_normalizer.from_bytes(head)
    best = found.best()
    if best is None or best.encoding in ("ascii", "utf_8"):
        return None
    known = {name for match in found for name in match.could_be_from_charset}
    latin = "cp1252" in known and best.encoding.startswith(("cp125", "iso8859", "mac", "latin"))
    western = latin and all(not letter.isalpha() or "LATIN" in unicodedata.name(letter, "") for letter in str(best))
    return "CP1252" if western else codecs.lookup(best.encoding).name.upper()

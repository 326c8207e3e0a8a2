"""Printed text stays text: nothing in rows, prompts, labels and answers moves the cursor, and no secret is shown."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
_SECRET = re.compile(
    r"\b(hf_)[A-Za-z0-9]{12,}|(?<![\w-])(sk-)(?:proj-|ant-|or-)?[A-Za-z0-9_-]{24,}|\b(gh[pousr]_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}"
)


def clean(text: str) -> str:
    """Return a text whose control characters are written as their numbers, and whose tokens are cut after what names their kind."""
    hidden = _SECRET.sub(lambda found: f"{next(filter(None, found.groups()))}…", text)
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", hidden)


class Readable:
    """A stream for people that passes on what `clean` leaves; the one that it wraps is `terminal`."""

    def __init__(self, terminal: Any) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        """Write a text."""
        self.terminal.write(clean(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


@contextlib.contextmanager
def printed() -> Iterator[None]:
    """Let all that is printed within be readable."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if isinstance(stream, Readable) else Readable(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def redraw(line: str, end: str) -> None:
    """Write a line over the one that stands on a terminal."""
    print(f"\r{clean(line)}\x1b[K", end=end, flush=True, file=getattr(sys.stdout, "terminal", sys.stdout))

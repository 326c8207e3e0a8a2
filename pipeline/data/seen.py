"""Which rows were seen before, on disk: memory does not grow with them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from pipeline.data.kept import Log

_SIZE = 16  # bytes of a digest that are compared


class Seen:
    """Digests, in a file without a name that goes with this object."""

    def __init__(self, log: Path | None = None, size: int = 0) -> None:
        """Begin without any, or with the first `size` bytes of those in a file, where all are put down."""
        self._keys = sqlite3.connect("")  # which holds what is too much for its cache of 2 MB in such a file
        self._keys.execute("PRAGMA journal_mode = OFF")
        self._keys.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._log = Log(log, size) if log else None
        known = self._log.known() if self._log else b""
        found = ((known[start : start + _SIZE],) for start in range(0, len(known), _SIZE))
        self._keys.executemany("INSERT INTO seen VALUES (?)", found)

    def new(self, digest: str) -> bool:
        """Take note of a digest, in hexadecimal digits; say whether it is met for the first time."""
        given = bytes.fromhex(digest)[:_SIZE]
        new = self._keys.execute("INSERT OR IGNORE INTO seen VALUES (?)", (given,)).rowcount == 1
        if new and self._log:
            self._log.add(given)
        return new

    def written(self) -> int:
        """Return how many bytes of digests there are in the file, once they lie on the disk."""
        return self._log.written() if self._log else 0

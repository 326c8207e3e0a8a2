"""Which rows were seen before, on disk: memory does not grow with them."""

from __future__ import annotations

import sqlite3


class Seen:
    """Digests, in a file without a name that goes with this object."""

    def __init__(self) -> None:
        self._keys = sqlite3.connect("")  # which holds what is too much for its cache of 2 MB in such a file
        self._keys.execute("PRAGMA journal_mode = OFF")
        self._keys.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def new(self, digest: str) -> bool:
        """Take note of a digest, in hexadecimal digits; say whether it is met for the first time."""
        given = (bytes.fromhex(digest)[:16],)
        return self._keys.execute("INSERT OR IGNORE INTO seen VALUES (?)", given).rowcount == 1

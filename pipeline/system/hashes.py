"""Digests of values, of files and of folders.

The sha256 of a file is remembered while its size, time of change and inode stay as they were, which makes an
unchanged node end at once. What is remembered lies in the user's cache folder and can be deleted at any time.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_RACY = 2_000_000_000  # ns: a file younger than this may still change within the same tick of its clock
_MOST = 20_000  # files that are remembered
RECORD, CLAIM, LOG = "manifest.json", "claim.json", "log.jsonl"  # what a node's folder holds beside what it hands on


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form, in hex."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def streamed(value: Any) -> str:
    """Return the `digest` of a value in whose lists iterators may stand for lists; these are read once, an item at a time."""
    found = hashlib.sha256()
    for piece in _pieces(value):
        found.update(piece.encode())
    return found.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _pieces(value: Any) -> Iterator[str]:
    """Yield the canonical form of a value, of the item of a list or iterator by itself."""
    if not isinstance(value, (list, Iterator)):
        yield _canonical(value)
        return
    yield "["
    for number, item in enumerate(value):
        yield "," * bool(number)
        yield from _pieces(item)
    yield "]"


def read(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Memory:
    def __init__(self) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.path = Path(base) / "tristage" / "hashes.json"
        self.changed = False
        self.known: dict[str, str] = {}  # path → "size time inode digest", in one text since there may be very many
        try:
            found = dict(json.loads(self.path.read_text(encoding="utf-8")))
            self.known = {key: str(entry) for key, entry in found.items()}
        except (OSError, ValueError, TypeError):
            return

    def sha256(self, path: Path) -> str:
        key, found = str(path.resolve()), path.stat()
        mark = f"{found.st_size} {found.st_mtime_ns} {found.st_ino} "
        entry = self.known.get(key, "")
        if entry.startswith(mark):
            return entry.removeprefix(mark)
        digest = read(path)
        if time.time_ns() - found.st_mtime_ns > _RACY:
            if not self.changed:
                self.changed = True
                atexit.register(self.keep)
            self.known.pop(key, None)
            self.known[key] = mark + digest
        return digest

    def keep(self) -> None:
        """Write what is known; a home that can't be written only costs time."""
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(dict(list(self.known.items())[-_MOST:])), encoding="utf-8")
            partial.replace(self.path)
        except OSError:
            return


_memory: _Memory | None = None


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hex: the remembered one where the file looks unchanged."""
    global _memory
    _memory = _memory or _Memory()
    return _memory.sha256(path)


def handed_on(folder: Path) -> set[str]:
    """Return the names of the files that a node hands on: all but its record, its checkpoints and what is hidden."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    others = ("checkpoint-", "runs/", ".")
    return {
        name
        for name in names
        if name not in (RECORD, CLAIM, LOG) and not name.startswith(others) and not name.endswith(".partial")
    }


def files(folder: Path, sha256: Callable[[Path], str] = sha256) -> dict[str, dict[str, Any]]:
    """Return name → sha256 and size of every file that a folder hands on; digests of unchanged files are remembered ones."""
    return {
        name: {"sha256": sha256(folder / name), "size": (folder / name).stat().st_size} for name in sorted(handed_on(folder))
    }


def outputs(listing: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the digest over the files of a listing."""
    return digest({name: entry["sha256"] for name, entry in listing.items()})

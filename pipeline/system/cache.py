"""Files that cost time to make, kept under a digest of all that decides them: stages, profiles and repeats share them.

The folder is `CACHE`, or else `tristage/data` under the user's cache; `CACHE_GB` is its largest size, and what was not
used for the longest time goes first. An entry appears by a rename once it is whole. What a killed process left of one is
handed to the next that makes it. While a process uses an entry it holds a lock on it, and nobody removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pipeline import ROOT
from pipeline.system import hashes
from pipeline.system.errors import UserError

GIGABYTES = 50.0  # the largest size, where nobody says another
_WHOLE = "whole.json"  # of an entry: the sizes of its files
_ENTRIES = ("rows-", "tokens-", "tokenizer-", "doubts-")  # what the names of entries begin with
_PARTIAL, _LOCK = ".partial", ".lock"
_LIBRARIES = ("datasets", "pyarrow", "tokenizers", "transformers")
_held: dict[Path, IO[bytes]] = {}  # entries that this process uses


def key(*parts: Any) -> str:
    """Return the digest of JSON values, of our code and of the libraries that make what is kept."""
    return hashes.digest([*_makers(), *parts])[:32]


@functools.cache
def _makers() -> list[Any]:
    code = sorted((ROOT / "pipeline").rglob("*.py"))
    return [[hashes.sha256(path) for path in code], [importlib.metadata.version(name) for name in _LIBRARIES]]


def folder() -> Path:
    """Return the folder of all entries, which exists; a temporary one where it can't be written."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return _writable(Path(os.environ.get("CACHE") or Path(base) / "tristage" / "data"))


@functools.cache
def _writable(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tristage-")


def limit() -> int:
    """Return the largest size in bytes; UserError where `CACHE_GB` is no size."""
    given = os.environ.get("CACHE_GB") or str(GIGABYTES)
    try:
        size = float(given)
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise UserError(f"CACHE_GB: {given}: expected a number of gigabytes")
    return int(size * 1e9)


def made(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of an entry; where it isn't whole, `make` is called with a folder to make it in.

    That folder may hold files of a process that was killed. Other processes wait until the entry is whole.
    """
    path = folder() / name
    if path in _held and _is_whole(path):
        return path
    _let_go(path)
    lock = _locked(path, fcntl.LOCK_SH)
    while not _is_whole(path):
        lock.close()
        with _locked(path, fcntl.LOCK_EX):  # another may come first, and make it
            if not _is_whole(path):
                _make(path, make)
        lock = _locked(path, fcntl.LOCK_SH)
    _held[path] = lock
    with contextlib.suppress(OSError):
        os.utime(path / _WHOLE)
    return path


def _locked(path: Path, how: int) -> IO[bytes]:
    """Take the lock of an entry, once more where who had it has removed its file; BlockingIOError as `flock` raises it."""
    while True:
        lock = path.with_name(path.name + _LOCK).open("ab")
        try:
            fcntl.flock(lock, how)
        except BlockingIOError:
            lock.close()
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)):
                return lock
        lock.close()


def once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file, unless it is there; `make` writes it under another name. Other processes wait until it is whole."""
    with _locked(path, fcntl.LOCK_EX):
        if not path.exists():
            partial = path.with_name(path.name + _PARTIAL)
            make(partial)
            partial.replace(path)


def _make(path: Path, make: Callable[[Path], None]) -> None:
    bound = limit()
    partial = path.with_name(path.name + _PARTIAL)
    shutil.rmtree(path, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    try:
        make(partial)
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
    (partial / _WHOLE).write_text(json.dumps(sizes), encoding="utf-8")
    partial.replace(path)
    shrink(bound, path)


def _is_whole(path: Path) -> bool:
    try:
        sizes = json.loads((path / _WHOLE).read_text(encoding="utf-8"))
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _let_go(path: Path) -> None:
    if lock := _held.pop(path, None):
        lock.close()


def shrink(bound: int, keep: Path | None = None) -> tuple[int, int]:
    """Remove entries that nobody uses, the one not used for the longest time first, until all are within `bound` bytes.

    Returns how many were removed and how many bytes are left.
    """
    entries = [path for path in folder().iterdir() if path.is_dir() and path.name.startswith(_ENTRIES)]
    sizes = {path: _size(path) for path in entries}
    total, removed = sum(sizes.values()), 0
    for path in sorted(entries, key=_used):
        if total <= bound:
            break
        if path != keep and _remove(path):
            total, removed = total - sizes[path], removed + 1
    for lock in folder().glob(f"*{_LOCK}"):  # of entries that were never made, or removed by an earlier version
        if not any(lock.with_name(lock.stem + kind).exists() for kind in ("", _PARTIAL)):
            _remove(lock.with_name(lock.stem))
    return removed, total


def _size(path: Path) -> int:
    """Return the bytes of an entry, as far as it is still there: another process may finish or remove it meanwhile."""
    found = 0
    with contextlib.suppress(FileNotFoundError):
        for file in path.iterdir():
            found += file.stat().st_size
    return found


def _used(path: Path) -> float:
    for mark in (path / _WHOLE, path):
        with contextlib.suppress(FileNotFoundError):
            return mark.stat().st_mtime
    return 0.0


def _remove(path: Path) -> bool:
    """Remove an entry and its lock; say whether that was possible, which it isn't while another uses it."""
    whole = path.with_name(path.name.removesuffix(_PARTIAL))
    if whole in _held:
        return False
    try:
        with _locked(whole, fcntl.LOCK_EX | fcntl.LOCK_NB) as lock:
            shutil.rmtree(path, ignore_errors=True)
            os.unlink(lock.name)
    except BlockingIOError:
        return False
    return True

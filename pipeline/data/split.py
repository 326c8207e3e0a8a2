"""Which rows are held out: those of files that are named so, and a share of the others by a hash of what they ask.

Rows with the same prompt are on one side, whatever the answers, and so are rows that differ in case, blanks and punctuation.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from array import array
from collections.abc import Collection, Sequence
from itertools import compress, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data import kept
from pipeline.data.paths import Paths
from pipeline.data.rows import SPLITS
from pipeline.data.types import Row

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN, HELD_OUT = SPLITS
_KEY = 16  # bytes
SAME = "the same prompt or text as a held-out row"
_NAMED = r"(?:test|validation|valid|val|dev|eval|held[-_]?out)"
_STEM = re.compile(rf"{_NAMED}(?:[-_.](?:\d[\w.-]*|[a-z0-9]+(?:[-_.]\d[\w.-]*)?))?", re.IGNORECASE)
_ASCII = bytes(code if code > 127 or chr(code).isalnum() else 32 for code in range(256))  # of UTF-8, blanks for ASCII's marks
_MARKS = re.compile(r"[^\x00-\x7f\w]+")  # of other scripts


def normalised(text: str) -> str:
    """Return the words of a text in lower case; the text itself where it has none."""
    words = text.lower() if text.isascii() else _MARKS.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return (
        b" ".join(words.encode(errors="surrogatepass").translate(_ASCII).split()).decode(errors="surrogatepass") or text.strip()
    )


def key(row: Row, asked: str) -> bytes:
    """Return the digest by which a row gets its side: that of its group, or else of what it asks."""
    told = f"group {row['group']}" if row.get("group") else normalised(asked)
    return hashlib.sha256(told.encode(errors="surrogatepass")).digest()[:_KEY]


def out(key: bytes, share: float) -> bool:
    """Say whether the rows of a key are held out, of which a share is."""
    return int.from_bytes(key[:4]) < share * 2**32


def by_name(paths: Sequence[Path], pictures: Collection[str] = ()) -> tuple[Sequence[Path], Sequence[Path]]:
    """Return the files for training, and those that are named as a split to hold out: `test-0.parquet`, `test/0.parquet`.

    Where no other file is left to train on, a name means nothing. Of `pictures`, kinds of files that are one row, only a
    folder tells, which may be that above the folder of a class: `test/cats/1.png`.
    """

    def single(path: Path) -> bool:
        return path.suffix.lstrip(".").lower() in pictures

    above = {path.parent: (path.parent, *(path.parent.parents if single(path) else ())) for path in paths}
    trained = {folder.parent for folders in above.values() for folder in folders if folder.name.lower() == TRAIN}
    outside = {
        parent for parent, folders in above.items()
        if any(folder.parent in trained and re.fullmatch(_NAMED, folder.name, re.IGNORECASE) for folder in folders)
    }  # fmt: skip

    def named(path: Path) -> bool:
        return path.parent in outside or bool(not single(path) and _STEM.fullmatch(path.name.partition(".")[0]))

    out = [named(path) for path in paths]
    if all(out) or not any(out):
        return paths, ()
    return Paths(compress(paths, (not one for one in out))), Paths(compress(paths, out))


def keys_of(held: bytes) -> list[bytes]:
    """Return the keys that stand one behind another in `held`."""
    return [held[start : start + _KEY] for start in range(0, len(held), _KEY)]


def _read(mark: Path) -> dict[str, Any]:
    """Return what a mark says; nothing where there is none, or where a power cut emptied it."""
    try:
        return dict(json.loads(mark.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


class Sides:
    """The files of one pass over a recipe's rows, one for each split; after a kill they are gone on with where the pass was marked."""

    def __init__(self, folder: Path, share: float, moves: bool = True) -> None:
        """Begin both files, or go on; `moves`: whether a group may change its side where else one side had none."""
        self._folder, self._share = folder, share
        self._mark, self.size = folder / "pass.json", 0  # bytes that were read since the last mark
        self.marked = _read(self._mark)
        files = self.marked.get("files", {})
        self.writers = {split: kept.Writer(folder / f"{split}.arrow", *files.get(split, ())) for split in SPLITS}
        self._begun: list[dict[str, int]] = self.marked.get("begun", [])  # rows of each file at the beginning of a source
        self.named: set[bytes] = set()  # keys of rows that are held out by name
        self._groups: dict[bytes, array[int]] | None = (
            {} if share and moves else None
        )  # key → its rows, while all are on one side
        self._keys = kept.Log(folder / "pass.keys", self.marked.get("keys", 0))  # of both
        known = keys_of(self._keys.known())
        if self.marked.get("grouped", True):
            self._group(known, 0)
        else:
            self._groups, self.named = None, set(known)

    def mark(self, **more: Any) -> None:
        """Let a pass that is killed from now on go on from here, with JSON values that it knows by then."""
        self.size, wanted = 0, self.named or self._groups is not None
        files = {split: writer.written() for split, writer in self.writers.items()}
        self.marked = {
            "files": files,
            "begun": self._begun,
            "keys": self._keys.written() if wanted else 0,
            "grouped": self._groups is not None,
            **more,
        }
        partial = self._mark.with_suffix(".partial")
        partial.write_text(json.dumps(self.marked), encoding="utf-8")
        partial.replace(self._mark)

    def begin(self) -> None:
        """Say that rows of another source follow."""
        self._begun.append({split: writer.rows for split, writer in self.writers.items()})

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Where the rows of each source stand among those for training: the first, and the one after the last."""
        begun = [at[TRAIN] for at in self._begun]
        return list(pairwise([*begun, self.writers[TRAIN].rows]))

    def add(self, rows: pa.RecordBatch, keys: bytes, held_out: bool) -> list[str]:
        """Write rows, each with its key, to their sides; return where those stand that are dropped since a held-out row asks the same.

        Rows that are `held_out` by name come before all others.
        """
        import numpy as np
        import pyarrow

        first = np.frombuffer(keys, np.uint8).reshape(-1, _KEY)[:, :4].copy().view(">u4")[:, 0]
        out = np.full(len(first), True) if held_out else first < self._share * 2**32
        if held_out:
            self.named.update(keys_of(keys))
            self._keys.add(keys)
            self._groups = None
        same = np.zeros(len(first), bool)
        if self.named and not held_out:
            same = np.array([key in self.named for key in keys_of(keys)], bool)
        written = self.writers[HELD_OUT].rows + self.writers[TRAIN].rows
        for split, side in ((HELD_OUT, out), (TRAIN, ~out)):
            self.writers[split].append(rows.filter(pyarrow.array(side & ~same)))
        if self._groups is not None:
            self._keys.add(keys)
            self._group(keys_of(keys), written)
        return rows.column("origin").filter(pyarrow.array(same)).to_pylist() if same.any() else []

    def _group(self, keys: Sequence[bytes], first: int) -> None:
        """Take note of the groups of rows, the first of which has this number, while all rows are on one side."""
        if self._groups is None or all(writer.rows for writer in self.writers.values()):
            self._groups = None
            return
        for number, key in enumerate(keys, start=first):
            self._groups.setdefault(key, array("q")).append(number)

    def close(self) -> None:
        """Finish both files. Where one is empty, a single group is for training, and of more groups one is held out."""
        for writer in self.writers.values():
            writer.close()
        self._keys.close()
        for name in ("pass.json", "pass.keys"):  # a pass that is killed while rows change their side begins again
            (self._folder / name).unlink(missing_ok=True)
        if not self._groups or not self._share or self.named:
            return
        groups = self._groups
        wanted = self._share * sum(map(len, groups.values()))
        near = min(groups, key=lambda key: (abs(len(groups[key]) - wanted), key))
        out = set(groups[near]) if len(groups) > 1 else set()
        source = next(split for split in SPLITS if self.writers[split].rows)
        given = kept.load(self._folder / f"{source}.arrow")
        made = {split: kept.Writer(self._folder / f"{split}.again") for split in SPLITS}
        begun, starts = [dict.fromkeys(SPLITS, 0) for _ in self._begun], [at[source] for at in self._begun]
        for number, (row, where) in enumerate(zip(*given, strict=True)):
            for at in (at for at, start in zip(begun, starts, strict=True) if start == number):
                at |= {split: writer.rows for split, writer in made.items()}
            made[HELD_OUT if number in out else TRAIN].add(row, where)
        for split, writer in made.items():
            writer.close()
            for at, start in zip(begun, starts, strict=True):
                at[split] = writer.rows if start >= len(given[0]) else at[split]
            (self._folder / f"{split}.again").replace(self._folder / f"{split}.arrow")
        self.writers, self._begun = made, begun

"""Duplicates and near-duplicates among rows of any number, by MinHash (Broder 1997), bands on disk and exact Jaccard at last.

The signature of a row, 120 minima over its 5-grams of words, is cut into 20 bands of 6. Rows that agree in a band are
candidates, and two candidates are near-duplicates where the Jaccard similarity of their 5-grams, counted and not estimated,
reaches the threshold. A pair of similarity s becomes a candidate with probability 1 - (1 - s^6)^20: 0.9999 at 0.85, 0.998 at
0.8, 0.92 at 0.7. Of a group of rows the first is kept: each one that is dropped is a near-duplicate of one that is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.curation.words import grams, mixed, texts, words
from pipeline.data.types import Row

if TYPE_CHECKING:
    import numpy as np

LEAST = 0.7  # below which the bands lose too many
NEEDS = ("rensa",)
_LENGTH = 5  # words of a gram
_BANDS, _ROWS = 20, 6
COLUMNS = 1 + _BANDS  # of keys: of the whole text, and of each band
_SEED = 1  # of the permutations
_PART = 1 << 20  # keys that are sorted at once
_BLOCK = 1 << 16  # rows whose candidates are looked at together
_EARLIER = 4  # rows of a band that another is compared with, the first ones and the one before it
_CACHED = 512  # rows whose grams are kept in memory


def shingles(row: Row) -> np.ndarray:
    """Return the digests of the 5-grams of a row's words, sorted, each once, (grams,) uint64."""
    import numpy as np

    return np.unique(grams([word for text in texts(row) for word in words(text)], _LENGTH))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Jaccard similarity of two sets of digests."""
    import numpy as np

    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def keys(rows: Sequence[Row], near: bool) -> np.ndarray:
    """Return the keys of rows, (rows, COLUMNS) uint64: rows with an equal key in a column may be duplicates.

    Without `near` only the first column is made, and the others are zero.
    """
    import numpy as np
    import xxhash

    found = np.zeros((len(rows), COLUMNS), np.uint64)
    found[:, 0] = [xxhash.xxh3_64_intdigest(_plain(row).encode()) for row in rows]
    made = [shingles(row) for row in rows] if near else []
    some = [number for number, one in enumerate(made) if len(one)]
    if some:
        import rensa

        ends = np.cumsum([0, *(len(made[number]) for number in some)]).astype(np.uint64)
        flat = np.concatenate([made[number] for number in some])
        minima = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, _BANDS * _ROWS, _SEED).to_rows()
        bands = np.array(minima, np.uint64).reshape(len(some), _BANDS, _ROWS)
        for at in range(_ROWS):
            found[some, 1:] = mixed(found[some, 1:], bands[:, :, at])
    return found


def _plain(row: Row) -> str:
    """Return the words of a row, by which it is the same as another; its texts as they are where there are no words."""
    said = texts(row)
    return "\n".join(" ".join(words(text)) for text in said).strip() or "\n".join(said)


class Keys:
    """The keys of all rows, a file for each column."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.rows = folder, 0
        self._files = [(folder / f"column-{number:02}").open("wb") for number in range(COLUMNS)]

    def add(self, found: np.ndarray) -> None:
        """Write the keys of further rows, (rows, COLUMNS)."""
        for file, column in zip(self._files, found.T, strict=True):
            file.write(column.tobytes())
        self.rows += len(found)

    def close(self) -> None:
        """Finish the files."""
        for file in self._files:
            file.close()


class Same(NamedTuple):
    """A row that is dropped, the earlier one that is kept for it, and how similar they are; 1.0 and `exact` where equal."""

    row: int
    kept: int
    similarity: float
    exact: bool


def find(given: Keys, read: Callable[[int], Row], near: float, exact: bool, dropped: np.ndarray) -> Iterator[Same]:
    """Yield the rows that are duplicates of an earlier one, in order; `near`: the least similarity, 0 for equal rows alone.

    `read` returns a row by its number; `dropped`, (rows,) uint8, gets 1 for each row that is dropped. What is held in memory does not grow with the number of rows.
    """
    import numpy as np

    if not given.rows:
        return
    buckets = _candidates(given, COLUMNS if near else 1)
    shingled = functools.lru_cache(_CACHED)(lambda number: shingles(read(number)))
    told = functools.lru_cache(_CACHED)(lambda number: _plain(read(number)))
    for bucket in buckets:
        for row, earlier in np.unique(np.fromfile(bucket, np.int64).reshape(-1, 2), axis=0).tolist():
            if dropped[row] or dropped[earlier]:
                continue
            if exact and told(row) == told(earlier):
                found = Same(row, earlier, 1.0, True)
            elif near and len(shingled(row)) and (similarity := jaccard(shingled(row), shingled(earlier))) >= near:
                found = Same(row, earlier, similarity, False)
            else:
                continue
            dropped[row] = 1
            yield found


def _candidates(given: Keys, columns: int) -> list[Path]:
    """Write pairs of rows that agree in a column, (later, earlier), into files by the block of the later; return these in order."""
    import numpy as np

    parts = max(1, -(-given.rows // _PART))
    bounds = [np.uint64(part * 2**64 // parts) for part in range(parts)]
    for column in range(columns):
        all_keys: Any = np.memmap(given.folder / f"column-{column:02}", np.uint64, "r")
        for part, low in enumerate(bounds):
            rows = np.concatenate([
                start + np.flatnonzero((chunk >= low) & ((part + 1 == parts) | (chunk < bounds[(part + 1) % parts])) & (chunk != 0))
                for start in range(0, given.rows, _PART) for chunk in [all_keys[start : start + _PART]]
            ])  # fmt: skip
            _spill(given.folder, *_sorted(all_keys[rows], rows))
    return sorted(given.folder.glob("pairs-*"))


def _sorted(found: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    order = np.argsort(found, kind="stable")
    return found[order], rows[order]


def _spill(folder: Path, found: np.ndarray, rows: np.ndarray) -> None:
    """Add the pairs of one sorted part of a column."""
    import numpy as np

    if len(found) < 2:
        return
    places = np.arange(len(found))
    begins = np.concatenate([[True], found[1:] != found[:-1]])
    start = np.maximum.accumulate(np.where(begins, places, 0))
    pairs = []
    for before in range(_EARLIER):
        later = places[places - start > before]
        pairs.append(np.stack([rows[later], rows[start[later] + before]], 1))
    later = places[places - start > _EARLIER]
    pairs.append(np.stack([rows[later], rows[later - 1]], 1))
    made = np.concatenate(pairs).astype(np.int64)
    for block in np.unique(made[:, 0] // _BLOCK):
        with (folder / f"pairs-{block:08}").open("ab") as file:
            file.write(made[made[:, 0] // _BLOCK == block].tobytes())

"""Contamination: rows for training that hold a passage of held-out rows or of task files.

What is held out is cut into passages of 50 words, of which each overlaps the next by half. A row holds a passage where it has a share of the passage's 8-grams (as
Lambert et al. 2024, section 3.2, compare prompts). 8-grams that many passages share are no sign of one of them. A text of
fewer than 8 words counts as a whole, and one of fewer than 4 not at all. The index lies on disk, sorted, and is mapped.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.curation.words import grams, texts, words
from pipeline.data.types import DatasetType, Row, is_messages, opening

if TYPE_CHECKING:
    import numpy as np

_LENGTH, _SHORTEST = 8, 4  # words of a gram; of a text that counts
_PASSAGE = 50  # words
_COMMON = 20  # passages of a run that share a gram, from which on it is no sign
_RUN = 1_000_000  # grams that are sorted at once


def asked(kind: DatasetType, row: Row) -> list[str]:
    """Return the texts of a held-out row that a row for training may not hold: those that a model is given."""
    given = {column: row[column] for column in kind.asks or row.keys() - {"group"} if column in row}
    return texts({column: opening(value) if is_messages(value) else value for column, value in sorted(given.items())})


class Writer:
    """Writes the index into a folder, a sorted run at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._held, self._count, self._passages = folder, list[tuple[Any, Any]](), 0, 0
        self._sources: list[tuple[str, int]] = []  # name → the passage after its last
        self._runs, self._seen = 0, set[bytes]()  # texts of the run
        folder.mkdir(parents=True)

    def add(self, name: str, found: Iterable[str]) -> None:
        """Take in the texts of a source."""
        import numpy as np

        for text in found:
            said = words(text)
            if len(said) < _SHORTEST:
                continue
            made = grams(said, _LENGTH)
            same = hashlib.blake2b(made.tobytes(), digest_size=16).digest()
            if same in self._seen:
                continue
            self._seen.add(same)
            half = (_PASSAGE - _LENGTH + 1) // 2
            count, place = max(1, len(made) // half - 1), np.arange(len(made)) // half
            first, second = np.minimum(place, count - 1), np.clip(place - 1, 0, count - 1)
            both = second != first
            self._held.append((np.concatenate([made, made[both]]), np.concatenate([first, second[both]]) + self._passages))
            self._count, self._passages = self._count + len(made) + int(both.sum()), self._passages + count
            if self._count >= _RUN:
                self._flush()
        self._sources.append((name, self._passages))

    def _flush(self) -> None:
        import numpy as np

        made, numbers = (np.concatenate(column) for column in zip(*self._held, strict=True))
        unique = np.unique(_pairs(made, numbers))
        _, place, counts = np.unique(unique["gram"], return_inverse=True, return_counts=True)
        unique = unique[counts[place] <= _COMMON]
        for name in ("gram", "passage"):
            np.save(self._folder / f"{name}-{self._runs}.npy", np.ascontiguousarray(unique[name]))
        first = int(numbers.min())
        np.save(self._folder / f"size-{self._runs}.npy", np.bincount(unique["passage"] - first, minlength=1))
        np.save(self._folder / f"first-{self._runs}.npy", np.array(first))
        self._runs, self._held, self._count, self._seen = self._runs + 1, [], 0, set()

    def close(self) -> None:
        """Finish the index."""
        if self._held:
            self._flush()
        (self._folder / "sources.json").write_text(json.dumps([self._runs, self._sources]), encoding="utf-8")


def _pairs(made: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    import numpy as np

    found = np.empty(len(made), [("gram", np.uint64), ("passage", np.int64)])
    found["gram"], found["passage"] = made, numbers
    return found


class Index:
    """What a writer left, read from disk as it is needed."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        runs, self._sources = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
        self._runs = [
            [np.load(folder / f"{name}-{number}.npy", mmap_mode="r" if name != "first" else None) for name in ("gram", "passage", "size", "first")]
            for number in range(runs)
        ]  # fmt: skip

    def holds(self, row: Row, share: float) -> str | None:
        """Return of which source a row holds a passage, by so many of its grams; None for no passage."""
        import numpy as np

        made = [grams(said, _LENGTH) for text in texts(row) if len(said := words(text)) >= _SHORTEST]
        if not made:
            return None
        sought = np.unique(np.concatenate(made))
        for all_grams, passages, sizes, first in self._runs:
            begin = np.searchsorted(all_grams, sought, "left")
            end = np.searchsorted(all_grams, sought, "right")
            found = [passages[low:high] for low, high in zip(begin, end, strict=True) if high > low]
            if not found:
                continue
            numbers, counts = np.unique(np.concatenate(found), return_counts=True)
            hit = numbers[counts >= share * sizes[numbers - int(first)]]
            if len(hit):
                return next(str(name) for name, after in self._sources if hit[0] < after)
        return None


@functools.lru_cache(maxsize=1)
def opened(folder: Path) -> Index:
    """Return the index in a folder, opened once in a process."""
    return Index(folder)

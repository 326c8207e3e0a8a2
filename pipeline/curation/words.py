"""The texts of a row and their n-grams, by which rows are compared: case, blanks and punctuation don't count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.data.scripts import WORD
from pipeline.data.split import normalised
from pipeline.data.types import Row

if TYPE_CHECKING:
    import numpy as np

_ASIDE = ("role", "group", "tools", "tags", "label")  # keys whose values are no text of a row
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that a product of 64 bits loses nothing


def mapped(value: Any, change: Callable[[str], str], system: bool = True) -> Any:
    """Return a row with each of its texts changed; without `system` what a system message says is left alone."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        if not system and value.get("role") == "system":
            return value
        return {key: item if key in _ASIDE else mapped(item, change, system) for key, item in value.items()}
    return [mapped(item, change, system) for item in value] if isinstance(value, list) else value


def texts(row: Row) -> list[str]:
    """Return the texts of a row in order, system messages aside, which many rows share."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    mapped(row, note, system=False)
    return found


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(normalised(text))


def mixed(made: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Return digests of 64 bits that further ones went into, number by number."""
    import numpy as np

    made = (made ^ more) * np.uint64(_FACTOR)
    return np.asarray(made ^ (made >> np.uint64(29)))


def grams(found: list[str], length: int) -> np.ndarray:
    """Return the digest of every run of so many words, (words - length + 1,) uint64; of fewer words, the one of them all."""
    import numpy as np
    import xxhash

    digests = np.fromiter(
        (xxhash.xxh3_64_intdigest(word.encode(errors="surrogatepass")) for word in found), np.uint64, len(found)
    )
    length = min(length, len(found))
    made = np.full(len(found) - length + 1 if found else 0, length, np.uint64)
    for at in range(length):
        made = mixed(made, digests[at : at + len(made)])
    return made

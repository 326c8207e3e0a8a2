"""Words of messages: numbers in sentences, and what a misspelt name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def counted(count: int, what: str) -> str:
    """Return how many there are in words: `1 row`, `2,000 rows`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def meant(name: str, known: Iterable[str], otherwise: str, most: int = 1, cutoff: float = 0.6) -> str:
    """Return the remedy for an unknown name: `did you mean dpo?`, or `otherwise` where no known name is near.

    `most`: names that are suggested at once. `cutoff`: the similarity from which they are, 0 to 1.
    """
    close = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(close)}?" if close else otherwise

"""Filters of datatrove behind our rules: rules and thresholds are the library's, words and sentences are found without models."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datatrove.utils.word_tokenizers import WordTokenizer

NEEDS = ("datatrove", "loguru", "humanize")


@functools.cache
def language(code: str) -> WordTokenizer:
    """Return what the filters take for a language: its words and its sentences, these by sentencex."""
    import sentencex
    from datatrove.utils import word_tokenizers

    class Words(word_tokenizers.WordTokenizer):  # type: ignore[misc]
        """Words and marks of a text."""

        def word_tokenize(self, text: str) -> list[str]:
            return re.findall(r"\w+|[^\w\s]", text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [sentence for part in sentencex.segment(code, text) if (sentence := part.strip())]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return list(word_tokenizers.simple_span_tokenize(text, self.sent_tokenize(text)))

    return Words()


def reason(filter: Any, text: str) -> str | None:
    """Return why a filter drops a text, in the library's word; None where it keeps it."""
    from datatrove.data import Document

    kept = filter.filter(Document(text, ""))
    if isinstance(kept, tuple):
        return None if kept[0] else str(kept[1])
    return None if kept else str(filter.name)

"""Filters of datatrove behind our rules: rules and thresholds are the library's, words and sentences are found without models."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.curation.rules import Rule
from pipeline.system.config import option

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


@dataclass(frozen=True)
class FilterRule(Rule):
    """A rule that drops what one filter of datatrove drops; `_filter` makes that with the rule's options."""

    needs = NEEDS
    called: ClassVar[str]  # for people, before the filter's word
    language: str = option("en", "code of the language whose sentences are found")

    @property
    def _filter(self) -> Any:
        raise NotImplementedError

    def fault(self, text: str) -> str | None:
        """Return datatrove's word for the rule that a document breaks."""
        found = reason(self._filter, text)
        return found and f"{self.called}: {found.removeprefix('gopher_')}"

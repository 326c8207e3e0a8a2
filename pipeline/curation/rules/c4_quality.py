"""C4's rules (Raffel et al. 2020, section 2.2): lines that are no sentence go, and documents with too few sentences."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pipeline.curation.rules import Rule
from pipeline.curation.rules._datatrove import NEEDS, language, reason
from pipeline.system.config import option


@dataclass(frozen=True)
class C4Quality(Rule):
    """Removes lines from texts, and drops what has little left, lorem ipsum or curly brackets."""

    needs = NEEDS
    min_num_sentences: int = option(5, "sentences that are left in a document, at least", at_least=0)
    min_words_per_line: int = option(3, "words that a line has at least", at_least=0)
    max_word_length: int = option(1000, "characters of the longest word of a line, at most", at_least=1)
    filter_no_terminal_punct: bool = option(True, "remove lines without a mark at the end")
    filter_lorem_ipsum: bool = option(True, "drop documents with lorem ipsum")
    filter_javascript: bool = option(True, "remove lines that speak of javascript")
    filter_curly_bracket: bool = option(True, "drop documents with a curly bracket")
    filter_policy: bool = option(True, "remove lines that speak of cookies and terms of use")
    remove_citations: bool = option(True, "remove the citation marks of Wikipedia")
    language: str = option("en", "code of the language whose sentences are found")

    def _made(self, whole: bool) -> Any:
        """Return the filter; for one text of a row, it only removes lines."""
        from datatrove.pipeline.filters.c4_filters import C4QualityFilter

        return C4QualityFilter(
            remove_citations=self.remove_citations, filter_no_terminal_punct=self.filter_no_terminal_punct,
            min_num_sentences=self.min_num_sentences if whole else -1, min_words_per_line=self.min_words_per_line,
            max_word_length=self.max_word_length, filter_lorem_ipsum=whole and self.filter_lorem_ipsum,
            filter_javascript=self.filter_javascript, filter_curly_bracket=whole and self.filter_curly_bracket,
            filter_policy=self.filter_policy, language=language(self.language),
        )  # fmt: skip

    @functools.cached_property
    def _filters(self) -> tuple[Any, Any]:
        return self._made(False), self._made(True)

    def changed(self, text: str, counts: Counter[str]) -> str:
        """Return a text without the lines that are no sentence."""
        from datatrove.data import Document

        document = Document(text, "")
        self._filters[0].filter(document)
        counts["lines removed by C4's rules"] += len(text.splitlines()) - len(document.text.splitlines())
        return str(document.text)

    def fault(self, text: str) -> str | None:
        """Return datatrove's word for the rule that a document breaks."""
        found = reason(self._filters[1], text)
        return found and f"C4 quality: {found}"


RULE = C4Quality

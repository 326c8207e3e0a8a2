"""Gopher's rules of quality (Rae et al. 2021, table A1): length, words, symbols, bullets, ellipses, letters, stop words."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.curation.rules._datatrove import FilterRule, language
from pipeline.system.config import option


@dataclass(frozen=True)
class GopherQuality(FilterRule):
    """Drops what Gopher's rules call no prose."""

    called = "Gopher quality"
    min_doc_words: int = option(50, "words that a document has at least", at_least=0)
    max_doc_words: int = option(100_000, "words that it has at most", at_least=0)
    min_avg_word_length: float = option(3, "letters of a word in the mean, at least", at_least=0)
    max_avg_word_length: float = option(10, "letters of a word in the mean, at most", at_least=0)
    max_symbol_word_ratio: float = option(0.1, "signs such as # and ... for each word, at most", at_least=0)
    max_bullet_lines_ratio: float = option(0.9, "share of the lines that begin with a bullet, at most", at_least=0)
    max_ellipsis_lines_ratio: float = option(0.3, "share of the lines that end with an ellipsis, at most", at_least=0)
    max_non_alpha_words_ratio: float = option(
        0.8, "share of the words with a letter in them, at least (so named in datatrove)", at_least=0
    )
    min_stop_words: int = option(2, "different stop words, at least", at_least=0)
    stop_words: list[str] = option([], "which words these are; none: the eight English ones of the paper")  # noqa: RUF009

    @functools.cached_property
    def _filter(self) -> Any:
        from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter

        return GopherQualityFilter(
            self.min_doc_words, self.max_doc_words, self.min_avg_word_length, self.max_avg_word_length,
            self.max_symbol_word_ratio, self.max_bullet_lines_ratio, self.max_ellipsis_lines_ratio,
            self.max_non_alpha_words_ratio, self.min_stop_words, self.stop_words or None, language=language(self.language),
        )  # fmt: skip


RULE = GopherQuality

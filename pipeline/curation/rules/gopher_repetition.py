"""Gopher's rules of repetition (Rae et al. 2021, table A1): lines, paragraphs and n-grams that come again."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.curation.rules._datatrove import FilterRule, language
from pipeline.system.config import option


@dataclass(frozen=True)
class GopherRepetition(FilterRule):
    """Drops what repeats itself."""

    called = "Gopher repetition"
    dup_line_frac: float = option(0.3, "share of the lines that stood there before, at most", at_least=0)
    dup_para_frac: float = option(0.3, "share of the paragraphs, at most", at_least=0)
    dup_line_char_frac: float = option(0.2, "share of the characters in such lines, at most", at_least=0)
    dup_para_char_frac: float = option(0.2, "share of the characters in such paragraphs, at most", at_least=0)

    @functools.cached_property
    def _filter(self) -> Any:
        from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

        return GopherRepetitionFilter(
            self.dup_line_frac, self.dup_para_frac, self.dup_line_char_frac, self.dup_para_char_frac,
            language=language(self.language),
        )  # fmt: skip


RULE = GopherRepetition

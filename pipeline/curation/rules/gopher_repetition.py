"""Gopher's rules of repetition (Rae et al. 2021, table A1): lines, paragraphs and n-grams that come again."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.curation.rules import Rule
from pipeline.curation.rules._datatrove import NEEDS, language, reason
from pipeline.system.config import option


@dataclass(frozen=True)
class GopherRepetition(Rule):
    """Drops what repeats itself."""

    needs = NEEDS
    dup_line_frac: float = option(0.3, "share of the lines that stood there before, at most", at_least=0)
    dup_para_frac: float = option(0.3, "share of the paragraphs, at most", at_least=0)
    dup_line_char_frac: float = option(0.2, "share of the characters in such lines, at most", at_least=0)
    dup_para_char_frac: float = option(0.2, "share of the characters in such paragraphs, at most", at_least=0)
    language: str = option("en", "code of the language whose sentences are found")

    @functools.cached_property
    def _filter(self) -> Any:
        from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

        return GopherRepetitionFilter(
            self.dup_line_frac, self.dup_para_frac, self.dup_line_char_frac, self.dup_para_char_frac,
            language=language(self.language),
        )  # fmt: skip

    def fault(self, text: str) -> str | None:
        """Return datatrove's word for the rule that a document breaks."""
        found = reason(self._filter, text)
        return found and f"Gopher repetition: {found}"


RULE = GopherRepetition

"""FineWeb's own rules of quality (Penedo et al. 2024, section 3.6): punctuation at line ends, short lines, repeated lines."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.curation.rules._datatrove import FilterRule, language
from pipeline.system.config import option


@dataclass(frozen=True)
class FineWebQuality(FilterRule):
    """Drops lists, menus and fragments."""

    called = "FineWeb quality"
    line_punct_thr: float = option(0.12, "share of the lines that end with a mark, at least", at_least=0)
    short_line_thr: float = option(0.67, "share of short lines, at most", at_least=0)
    short_line_length: int = option(30, "characters up to which a line is short", at_least=0)
    char_duplicates_ratio: float = option(0.01, "share of the characters in lines that stood there before, at most", at_least=0)
    new_line_ratio: float = option(0.3, "line ends for each word, at most", at_least=0)

    @functools.cached_property
    def _filter(self) -> Any:
        from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter

        return FineWebQualityFilter(
            line_punct_thr=self.line_punct_thr, short_line_thr=self.short_line_thr, short_line_length=self.short_line_length,
            char_duplicates_ratio=self.char_duplicates_ratio, new_line_ratio=self.new_line_ratio,
            language=language(self.language),
        )  # fmt: skip


RULE = FineWebQuality

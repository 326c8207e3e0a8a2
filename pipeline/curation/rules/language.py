"""The language of a row, by langid's model of 97 languages (Lui and Baldwin 2012), which the package holds."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.curation.rules import Rule
from pipeline.system.config import option
from pipeline.system.errors import UserError


@functools.cache
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@dataclass(frozen=True)
class Language(Rule):
    """Keeps rows in some languages."""

    needs = ("py3langid",)
    languages: list[str] = option([], "codes of the languages that are kept, such as [en, de]")  # noqa: RUF009
    threshold: float = option(0.5, "probability of the likeliest language, at least", at_least=0, at_most=1)
    shortest: int = option(30, "letters below which a row is kept unjudged", at_least=1)

    def __post_init__(self) -> None:
        """Raise UserError where no language is named, or one that the model does not know."""
        known = {str(label) for label in _model().nb_classes}
        if not self.languages or (unknown := sorted(set(self.languages) - known)):
            what = f"no such language: {', '.join(unknown)}" if self.languages else "name at least one language"
            raise UserError(f"rules: language: languages: {what}; known are {', '.join(sorted(known))}")

    def fault(self, text: str) -> str | None:
        """Return the language that a row is in, where that is none of those; None also for a row of few letters."""
        if sum(map(str.isalpha, text)) < self.shortest:
            return None
        found, probability = _model().classify(text)
        if str(found) not in self.languages:
            return f"language: {found}"
        return "language: unsure" if probability < self.threshold else None


RULE = Language

"""Personal data that has a form of its own: addresses of mail and of the internet, numbers of phones, cards and accounts, keys.

Names of people, street addresses and dates have none; no rule finds these.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.curation.rules import Rule
from pipeline.system.config import option
from pipeline.system.errors import UserError

_PIECE = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"


def _address(text: str) -> bool:
    """Say whether a text is an address of the public internet."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _card(text: str) -> bool:
    """Say whether digits end with the check digit of Luhn (ISO/IEC 7812)."""
    digits = [int(sign) for sign in text if sign.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _account(text: str) -> bool:
    """Say whether an IBAN has the check digits of ISO 13616."""
    plain = "".join(text.split())
    return 15 <= len(plain) <= 34 and int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _phone(text: str) -> bool:
    return 8 <= sum(map(str.isdigit, text)) <= 15


_FORMS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "email": (rf"(?<![\w.+-])[\w.!#$%&'*+/=?^`{{|}}~-]{{1,64}}@(?:{_PIECE}\.)+[A-Za-z]{{2,24}}\b", lambda text: True),
    "key": (
        r"\b(?:hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|AIza[\w-]{35}"
        r"|xox[abprs]-[A-Za-z0-9-]{10,}|glpat-[\w-]{20})(?![\w-])|(?<![\w-])sk-[\w-]{24,}",
        lambda text: True,
    ),
    "iban": (r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", _account),
    "card": (r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![\d-])", _card),
    "ip": (rf"(?<![\w.:])(?:{_BYTE}\.){{3}}{_BYTE}(?![\w:]|\.\d)|(?<![\w:.])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{1,4}}(?![\w:])", _address),
    "phone": (
        r"(?<![\w+.,/-])(?:\+|00 ?)[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}(?![\w-])"
        r"|(?<![\w+.,/-])(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[ .-]\d{4}(?![\w-])",
        _phone,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PersonalData(Rule):
    """Masks what it finds as <email>, <phone> and the like, or drops the row."""

    kinds: list[str] = option(list(_FORMS), "what is looked for: email, key, iban, card, ip, phone")  # noqa: RUF009
    drop: bool = option(False, "drop rows that hold any, rather than mask it")

    def __post_init__(self) -> None:
        """Raise UserError for a kind that there is not."""
        if unknown := sorted(set(self.kinds) - _FORMS.keys()):
            raise UserError(f"rules: personal_data: kinds: {', '.join(unknown)}: no such kind; known are {', '.join(_FORMS)}")

    @functools.cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str], Callable[[str], bool]]]:
        return [(kind, re.compile(form), sure) for kind, (form, sure) in _FORMS.items() if kind in self.kinds]

    def changed(self, text: str, counts: Counter[str]) -> str:
        """Return a text with what was found masked."""
        if self.drop or not re.search(r"[@\d:]|[a-z]{2}[-_]", text, re.IGNORECASE):
            return text
        for kind, pattern, sure in self._patterns:

            def mask(found: re.Match[str]) -> str:
                if not sure(found[0]):  # noqa: B023
                    return found[0]
                counts[f"{kind} masked"] += 1  # noqa: B023
                return f"<{kind}>"  # noqa: B023

            text = pattern.sub(mask, text)
        return text

    def fault(self, text: str) -> str | None:
        """Return which kind of personal data a row holds, where such rows are dropped."""
        if not self.drop:
            return None
        kinds = (kind for kind, pattern, sure in self._patterns if any(sure(found[0]) for found in pattern.finditer(text)))
        return next((f"personal data: {kind}" for kind in kinds), None)


RULE = PersonalData

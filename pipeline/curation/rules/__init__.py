"""Rules by which rows are cleaned or dropped, one file each; the file's name is the rule's name, its fields are its options."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from pipeline.system import extensions
from pipeline.system.errors import UserError


class Rule:
    """What a file in this folder defines as a frozen dataclass, under the name `RULE`."""

    needs: ClassVar[tuple[str, ...]] = ()  # packages of the extra `curation` that it needs

    def changed(self, text: str, counts: Counter[str]) -> str:
        """Return one text of a row as it should be, and count by kind what was changed in it."""
        return text

    def fault(self, text: str) -> str | None:
        """Return why a row is dropped, by all that is said in it; None where it is kept."""
        return None


def known() -> list[str]:
    """Return the names of all rules."""
    return extensions.known(__name__)


def load(name: str, options: Mapping[str, Any] | None) -> Rule:
    """Return a rule by name with its options; UserError where there is none, an option is wrong or a package is missing."""
    kind: type[Rule] = extensions.declared(__name__, name, known(), "rules", "rule", "RULE")
    require(f"rules: {name}", *kind.needs)
    if not isinstance(options, Mapping | None):
        raise UserError(f"rules: {name}: expected its options, as in {{{name}: {{}}}}, found {options!r}")
    found: Rule = extensions.configured(kind, options, f"rules: {name}")
    return found


def load_all(given: Mapping[str, Any]) -> list[Rule]:
    """Return rules by their names, in order; UserError with the faults of all of them."""
    found, faults = [], list[str]()
    for name, options in given.items():
        try:
            found.append(load(name, options))
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)
    return found


def require(what: str, *packages: str) -> None:
    """Raise UserError where a package that something needs is not installed."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise UserError(
            f"{what} needs {' and '.join(missing)}; `make setup-data` or `pip install 'tristage[curation]'` installs it"
        )

"""What the project is extended by: one file each in a package, found by its name, with options that are checked."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.system import config
from pipeline.system.errors import UserError


def known(package: str, helpers: Sequence[str] = ()) -> list[str]:
    """Return the names of a package's files in alphabetical order, `helpers` and those that begin with `_` left out."""
    names = (module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))
    return sorted(name for name in names if not name.startswith("_") and name not in helpers)


def declared(package: str, name: str, among: Sequence[str], label: str, kind: str, export: str) -> Any:
    """Return what a file of a package exports under a name; UserError naming the files that exist.

    `label` and `kind`: how people call where it is named and what it is, as in `rules: x: no such rule`.
    """
    if name not in among:
        raise UserError(f"{label}: {name or '(none)'}: no such {kind}; known are {', '.join(among)}")
    return getattr(importlib.import_module(f"{package}.{name}"), export)


def configured(kind: type[Any], options: Mapping[str, Any] | None, origin: str) -> Any:
    """Return an instance of a dataclass with these options; UserError, naming the origin, where one is wrong."""
    given = dict(options or {})
    if faults := config.check(given, dict.fromkeys(given, origin), kind, None):
        raise UserError(*faults)
    return kind(**given)

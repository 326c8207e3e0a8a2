"""Regular expressions given as options."""

from __future__ import annotations

import re

from pipeline.system.errors import UserError


def compiled(name: str, pattern: str) -> re.Pattern[str]:
    """Return a pattern in which a dot is any character; UserError if there is none or it is none."""
    if not pattern:
        raise UserError(f"options of reward {name}: pattern: is missing; give a regular expression")
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"options of reward {name}: pattern: {pattern!r} is no regular expression ({error})") from None

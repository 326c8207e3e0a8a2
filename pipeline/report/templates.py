"""The templates of what is shown: the page, and the picture of a loss beside a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def environment() -> Any:
    """Return the template engine over the files of this folder; every text in a template is escaped."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip

"""Helpers with which several types read the columns of public data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.types import Malformed, Messages

# The names that public data sets give to two texts which are read together.
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)


def text(row: Mapping[str, Any], column: str) -> str:
    """Return a column that holds text; Malformed if it holds anything else."""
    value = row[column]
    if not isinstance(value, str):
        raise Malformed(f"{column} is {type(value).__name__}, not text")
    return value


def turn(role: str, content: Any) -> dict[str, str]:
    """Return one message; Malformed if its content is no text."""
    if not isinstance(content, str):
        raise Malformed(f"the {role}'s content is {type(content).__name__}, not text")
    return {"role": role, "content": content}


def messages(value: Any) -> Messages:
    """Return a list of messages as OpenAI writes them; Malformed if it is none."""
    if not isinstance(value, list) or not value:
        raise Malformed(f"expected a list of messages, found {type(value).__name__}")
    turns = []
    for item in value:
        if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
            raise Malformed("a message without role or content")
        turns.append(turn(str(item["role"]), item["content"]))
    return turns


def spoken(value: Any, role: str) -> Messages:
    """Return messages, or a string as one message of `role`."""
    return [turn(role, value)] if isinstance(value, str) else messages(value)

"""Prompts without answers, for stages that sample: {"prompt": messages, …}; further columns, such as "answer", stay for rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.types import Format, Messages, Row
from pipeline.data.types._columns import FRAME, framed, said, silent, spoken
from pipeline.data.types._pictures import IMAGE, IMAGES, Conversations, with_pictures
from pipeline.models import parts

_ASKED = with_pictures(lambda row: {"prompt": framed(row, spoken(row, "prompt", "user"))})


def _prompt(row: Mapping[str, Any]) -> Row:
    """Convert a prompt, as a string or messages, with its pictures, and keep every other column as it is."""
    of_prompt = {"prompt", IMAGE, IMAGES, *FRAME}
    asked = _ASKED({key: value for key, value in row.items() if key in of_prompt})
    assert isinstance(asked, dict)  # a prompt is one row
    return {**{key: value for key, value in row.items() if key not in (IMAGE, IMAGES)}, **asked}


class Prompts(Conversations):
    """One prompt a row, with whatever a reward wants to know about it."""

    columns = "`prompt`: a list of messages; any further columns, such as `answer`, which rewards read"
    items = "prompts"
    asks = ("prompt",)
    reads_all = True
    formats = (Format("prompt", frozenset({"prompt"}), _prompt),)

    def fault(self, row: Row) -> str | None:
        """Return why nobody can answer, or None."""
        if not row["prompt"] or (silent(row["prompt"][-1]) and not parts.count(row["prompt"][-1:])):
            return "no prompt"
        return "ends with the assistant" if row["prompt"][-1]["role"] == "assistant" else self.unseen(row, "prompt", ())

    def document(self, row: Row) -> str:
        """Return what is said in the prompt; further columns may hold anything."""
        return said(row["prompt"])

    def prompt(self, row: Row) -> Messages | None:
        """Return the prompt, pictures in their places."""
        return parts.filled(row["prompt"], row.get(IMAGES, ()))


TYPE = Prompts()

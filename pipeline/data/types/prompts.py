"""Prompts without answers, for stages that sample: {"prompt": messages, …}; further columns, such as "answer", stay for rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.types import DatasetType, Format, Messages, Row
from pipeline.data.types._columns import framed, said, spoken


def _prompt(row: Mapping[str, Any]) -> Row:
    """Convert a prompt, as a string or messages, and keep every other column as it is."""
    return {**row, "prompt": framed(row, spoken(row["prompt"], "user"))}


class Prompts(DatasetType):
    """One prompt a row, with whatever a reward wants to know about it."""

    columns = "`prompt`: a list of messages; any further columns, such as `answer`, which rewards read"
    items = "prompts"
    asks = ("prompt",)
    reads_all = True
    formats = (Format("prompt", frozenset({"prompt"}), _prompt),)

    def fault(self, row: Row) -> str | None:
        """Return why nobody can answer, or None."""
        if not row["prompt"] or not row["prompt"][-1]["content"].strip():
            return "no prompt"
        return "ends with the assistant" if row["prompt"][-1]["role"] == "assistant" else None

    def document(self, row: Row) -> str:
        """Return what is said in the prompt; further columns may hold anything."""
        return said(row["prompt"])

    def prompt(self, row: Row) -> Messages | None:
        """Return the prompt."""
        return list(row["prompt"])


TYPE = Prompts()

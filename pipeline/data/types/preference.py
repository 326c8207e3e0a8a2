"""Pairs of answers to one prompt: {"prompt": messages, "chosen": messages, "rejected": messages}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.types import DatasetType, Format, Malformed, Messages, Row
from pipeline.data.types._columns import messages, spoken


def _pair(row: Mapping[str, Any]) -> Row:
    """Convert chosen and rejected, as strings or messages, with a prompt or with the prompt inside both."""
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is not None:
        prompt = spoken(row["prompt"], "user")
        chosen, rejected = spoken(chosen, "assistant"), spoken(rejected, "assistant")
        if chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:  # messages that repeat the prompt
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed("chosen and rejected are strings, but there is no prompt")
    left, right = messages(chosen), messages(rejected)
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    same = min(same, len(left) - 1)  # two equal sides still have a prompt and an answer each
    return {"prompt": left[:same], "chosen": left[same:], "rejected": right[same:]}


class Preference(DatasetType):
    """One prompt a row, with the answer that was preferred and the one that was not."""

    columns = "`prompt`, `chosen`, `rejected`: each a list of messages"
    items = "pairs"
    asks = ("prompt",)
    formats = (Format("chosen and rejected", frozenset({"chosen", "rejected"}), _pair),)

    def fault(self, row: Row) -> str | None:
        """Return why nothing can be preferred here, or None."""
        if not row["prompt"]:
            return "no prompt"
        for side in ("chosen", "rejected"):
            if not row[side] or not row[side][-1]["content"].strip():
                return f"empty {side}"
        return "chosen equals rejected" if row["chosen"] == row["rejected"] else None

    def document(self, row: Row) -> str:
        """Return the prompt and the answer that was preferred."""
        return "\n\n".join(turn["content"] for turn in row["prompt"] + row["chosen"])

    def prompt(self, row: Row) -> Messages | None:
        """Return the prompt."""
        return list(row["prompt"])


TYPE = Preference()

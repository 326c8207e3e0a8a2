"""One answer with a thumb up or down: {"prompt": messages, "completion": messages, "label": bool}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.types import DatasetType, Format, Malformed, Messages, Row
from pipeline.data.types._columns import messages, spoken

_THUMBS = {"true": True, "false": False, "1": True, "0": False, "up": True, "down": False, "yes": True, "no": False, "👍": True, "👎": False}  # fmt: skip


def _thumb(value: Any) -> bool:
    """Return whether a thumb is up, as data sets write it; Malformed if it is anything else."""
    known = _THUMBS.get(str(value).strip().lower()) if isinstance(value, (bool, int, str)) else None
    if known is None:
        raise Malformed(f"label is {value!r}, neither a thumb up (true, 1, up) nor down (false, 0, down)")
    return known


def _rated(row: Mapping[str, Any]) -> Row:
    """Convert a prompt and an answer, as strings or messages."""
    prompt, completion = spoken(row["prompt"], "user"), spoken(row["completion"], "assistant")
    if completion[: len(prompt)] == prompt:  # messages that repeat the prompt
        completion = completion[len(prompt) :]
    return {"prompt": prompt, "completion": completion, "label": _thumb(row["label"])}


def _conversation(row: Mapping[str, Any], column: str) -> Row:
    """Convert a whole conversation, of which the last message was rated."""
    if isinstance(row[column], str):
        raise Malformed(f"{column} is a string, but there is no prompt")
    turns = messages(row[column])
    return {"prompt": turns[:-1], "completion": turns[-1:], "label": _thumb(row["label"])}


class Feedback(DatasetType):
    """A prompt, one answer, and whether somebody liked it."""

    columns = "`prompt` and `completion`, each a list of messages, and `label`, whether the answer was liked"
    items = "rated answers"
    asks = ("prompt",)
    formats = (
        Format("prompt, completion and label", frozenset({"prompt", "completion", "label"}), _rated),
        Format("completion and label", frozenset({"completion", "label"}), lambda row: _conversation(row, "completion")),
        Format("messages and label", frozenset({"messages", "label"}), lambda row: _conversation(row, "messages")),
    )

    def fault(self, row: Row) -> str | None:
        """Return why nothing is learned from a row, or None."""
        if not isinstance(row["label"], bool):
            return "label neither true nor false"
        if not row["prompt"]:
            return "no prompt"
        if not row["completion"] or not row["completion"][-1]["content"].strip():
            return "empty completion"
        return None if row["completion"][-1]["role"] == "assistant" else "does not end with the assistant"

    def document(self, row: Row) -> str:
        """Return the prompt and the answer, whether it was liked or not."""
        return "\n\n".join(turn["content"] for turn in row["prompt"] + row["completion"])

    def prompt(self, row: Row) -> Messages | None:
        """Return the prompt."""
        return list(row["prompt"])


TYPE = Feedback()

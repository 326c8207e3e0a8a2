"""Conversations: {"messages": [{"role": str, "content": str}, …]}, ending with the assistant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.data.types import DatasetType, Format, Malformed, Row
from pipeline.data.types import Messages as Turns
from pipeline.data.types._columns import messages, spoken, text, turn

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
                   "bing": "assistant", "system": "system", "tool": "tool", "function": "tool"}  # fmt: skip


def _alpaca(row: Mapping[str, Any]) -> Row:
    instruction, more = text(row, "instruction"), row.get("input") or ""
    question = f"{instruction}\n\n{more}" if more else instruction
    system = [turn("system", row["system"])] if row.get("system") else []
    return {"messages": [*system, turn("user", question), turn("assistant", row["output"])]}


def _sharegpt(row: Mapping[str, Any]) -> Row:
    turns = [turn("system", row["system"])] if row.get("system") else []
    if not isinstance(row["conversations"], list):
        raise Malformed("conversations is no list")
    for item in row["conversations"]:
        if not isinstance(item, Mapping) or item.get("from") not in _SHAREGPT_ROLES or "value" not in item:
            raise Malformed("a turn whose `from` is not one of " + ", ".join(_SHAREGPT_ROLES))
        turns.append(turn(_SHAREGPT_ROLES[item["from"]], item["value"]))
    return {"messages": turns}


def _completion(row: Mapping[str, Any]) -> Row:
    return {"messages": spoken(row["prompt"], "user") + spoken(row["completion"], "assistant")}


class Messages(DatasetType):
    """One conversation a row; its last message is the assistant's."""

    columns = "`messages`: a conversation, a list of `role` and `content`"
    items = "conversations"
    formats = (
        Format("OpenAI messages", frozenset({"messages"}), lambda row: {"messages": messages(row["messages"])}),
        Format("ShareGPT", frozenset({"conversations"}), _sharegpt),
        Format("Alpaca", frozenset({"instruction", "output"}), _alpaca),
        Format("prompt and completion", frozenset({"prompt", "completion"}), _completion),
    )

    def fault(self, row: Row) -> str | None:
        """Return why a conversation teaches nothing, or None."""
        turns = row["messages"]
        if not any(item["role"] == "assistant" and item["content"].strip() for item in turns):
            return "no assistant text"
        if turns[-1]["role"] != "assistant":
            return "does not end with the assistant"
        return "empty assistant turn" if not turns[-1]["content"].strip() else None

    def prompt(self, row: Row) -> Turns | None:
        """Return all that comes before the assistant's last message; None where nobody has said anything by then."""
        return row["messages"][:-1] or None


TYPE = Messages()

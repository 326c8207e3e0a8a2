"""The shapes that rows take, and the common layouts that are recognised and converted to them.

`text`: {"text": str}. `messages`: {"messages": [{"role", "content"}, …]}, ending with the assistant.
`preference`: {"prompt": messages, "chosen": messages, "rejected": messages}. `labels`: {"text": str, "label": str},
and a "group" where rows belong together, so that they are never on both sides of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import UserError

Row = dict[str, Any]
SHAPES = ("text", "messages", "preference", "labels")
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
                   "bing": "assistant", "system": "system", "tool": "tool", "function": "tool"}  # fmt: skip


class Malformed(ValueError):
    """A row that has the columns of its layout but not their form; the text says what is wrong."""


def _turn(role: str, content: Any) -> dict[str, str]:
    if not isinstance(content, str):
        raise Malformed(f"the {role}'s content is {type(content).__name__}, not text")
    return {"role": role, "content": content}


def _messages(value: Any) -> list[dict[str, str]]:
    """Return a list of turns from OpenAI messages; Malformed if it is none."""
    if not isinstance(value, list) or not value:
        raise Malformed(f"expected a list of messages, found {type(value).__name__}")
    turns = []
    for item in value:
        if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
            raise Malformed("a message without role or content")
        turns.append(_turn(str(item["role"]), item["content"]))
    return turns


def _user(value: Any) -> list[dict[str, str]]:
    return [_turn("user", value)] if isinstance(value, str) else _messages(value)


def _assistant(value: Any) -> list[dict[str, str]]:
    return [_turn("assistant", value)] if isinstance(value, str) else _messages(value)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise Malformed(f"{key} is {type(value).__name__}, not text")
    return value


def _alpaca(row: Mapping[str, Any]) -> Row:
    instruction, more = _text(row, "instruction"), row.get("input") or ""
    question = f"{instruction}\n\n{more}" if more else instruction
    system = [_turn("system", row["system"])] if row.get("system") else []
    return {"messages": [*system, _turn("user", question), _turn("assistant", row["output"])]}


def _sharegpt(row: Mapping[str, Any]) -> Row:
    turns = [_turn("system", row["system"])] if row.get("system") else []
    if not isinstance(row["conversations"], list):
        raise Malformed("conversations is no list")
    for item in row["conversations"]:
        if not isinstance(item, Mapping) or item.get("from") not in _SHAREGPT_ROLES or "value" not in item:
            raise Malformed("a turn whose `from` is not one of " + ", ".join(_SHAREGPT_ROLES))
        turns.append(_turn(_SHAREGPT_ROLES[item["from"]], item["value"]))
    return {"messages": turns}


def _pair(row: Mapping[str, Any]) -> Row:
    """Convert chosen and rejected, as strings or messages, with a prompt or with the prompt inside both."""
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is not None:
        prompt = _user(row["prompt"])
        chosen, rejected = _assistant(chosen), _assistant(rejected)
        if chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:  # messages that repeat the prompt
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed("chosen and rejected are strings, but there is no prompt")
    left, right = _messages(chosen), _messages(rejected)
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    same = min(same, len(left) - 1)  # two equal sides still have a prompt and an answer each
    return {"prompt": left[:same], "chosen": left[same:], "rejected": right[same:]}


# Of each shape: layout, the columns that mark it, and the conversion. The first whose columns are all there wins.
_LAYOUTS: dict[str, list[tuple[str, frozenset[str], Callable[[Mapping[str, Any]], Row]]]] = {
    "text": [
        ("text", frozenset({"text"}), lambda row: {"text": _text(row, "text")}),
        ("content", frozenset({"content"}), lambda row: {"text": _text(row, "content")}),
    ],
    "messages": [
        ("OpenAI messages", frozenset({"messages"}), lambda row: {"messages": _messages(row["messages"])}),
        ("ShareGPT", frozenset({"conversations"}), _sharegpt),
        ("Alpaca", frozenset({"instruction", "output"}), _alpaca),
        (
            "prompt and completion",
            frozenset({"prompt", "completion"}),
            lambda row: {"messages": _user(row["prompt"]) + _assistant(row["completion"])},
        ),
    ],
    "preference": [
        ("chosen and rejected", frozenset({"chosen", "rejected"}), _pair),
    ],
    "labels": [
        ("text and label", frozenset({"text", "label"}), lambda row: {"text": _text(row, "text"), "label": str(row["label"])}),
    ],
}


def recognise(row: Mapping[str, Any], shape: str, where: str) -> tuple[str, Callable[[Mapping[str, Any]], Row]]:
    """Return the layout's name and its conversion to `shape`; UserError with the columns found if there is none."""
    for name, columns, convert in _LAYOUTS[shape]:
        if columns <= row.keys():
            return name, convert
    wanted = " or ".join("{" + ", ".join(sorted(columns)) + "}" for _, columns, _ in _LAYOUTS[shape])
    raise UserError(f"{where}: no layout for {shape}: found columns {{{', '.join(sorted(row))}}}, expected {wanted}")


def fault(row: Row, shape: str) -> str | None:
    """Return why a row of a shape can't be used (a reason to count), or None."""
    if shape in ("text", "labels"):
        return None if row["text"].strip() else "empty text"
    if shape == "messages":
        turns = row["messages"]
        if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in turns):
            return "no assistant text"
        if turns[-1]["role"] != "assistant":
            return "does not end with the assistant"
        return "empty assistant turn" if not turns[-1]["content"].strip() else None
    if not row["prompt"]:
        return "no prompt"
    for side in ("chosen", "rejected"):
        if not row[side] or not row[side][-1]["content"].strip():
            return f"empty {side}"
    return "chosen equals rejected" if row["chosen"] == row["rejected"] else None

"""Helpers with which several types read the columns of public data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pipeline.data.types import Malformed, Messages
from pipeline.models.parts import words

# The names that public data sets give to two texts which are read together.
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
# How data sets call those who speak; any other name stays as it is, and the chat template says whether it knows it.
_ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
    "developer": "system", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
_SHAREGPT = {"user", "assistant", "system", "tool", *_ROLES}
_REASONING = ("reasoning_content", "thinking", "reasoning")
_THUMBS = {"true": True, "false": False, "1": True, "0": False, "up": True, "down": False, "yes": True, "no": False, "👍": True, "👎": False}  # fmt: skip

# Columns of any conversation beside its messages, and those that may not be lost without a word, with what is lost.
FRAME = frozenset({"system", "system_prompt", "history", "tools", "functions", "chat_template_kwargs"})
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
MATTERS = {
    "label": "says whether the answer is good",
    **dict.fromkeys(_MEDIA, "is what the text is about"),
    **dict.fromkeys(("tool_calls", "function_call", *_REASONING), "is part of the answer"),
    **dict.fromkeys(FRAME, "is part of the conversation"),
}
_UNTRAINED = ("weight", "train", "loss")  # keys with which OpenAI, axolotl and swift say whether to train on a message


def text(row: Mapping[str, Any], column: str) -> str:
    """Return a column that holds text; Malformed if it holds anything else."""
    value = row[column]
    if not isinstance(value, str):
        raise Malformed(f"{column} is {called(value)}, not text")
    return value


def called(value: Any) -> str:
    """Return the name of a value's type for a message: that of Python, save for null."""
    return "null" if value is None else type(value).__name__


def number(row: Mapping[str, Any], column: str) -> float:
    """Return a column that holds a number, also as text; Malformed if it holds anything else, or nothing finite."""
    value = row[column]
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise Malformed(f"{column} is {value!r}, not a number")
    return found


def thumb(value: Any) -> bool | None:
    """Return whether a thumb is up, as data sets write it; None for anything else."""
    return _THUMBS.get(str(value).strip().lower()) if isinstance(value, (bool, int, str)) else None


def turn(role: str, content: Any) -> dict[str, Any]:
    """Return one message; Malformed if its content is no text, nor parts of text."""
    if isinstance(content, list):
        content = "".join(_part(role, part) for part in content)
    if not isinstance(content, str):
        raise Malformed(f"the {role}'s content is {called(content)}, not text")
    return {"role": role, "content": content}


def _part(role: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type", "nothing") if isinstance(part, Mapping) else type(part).__name__
        raise Malformed(f"the {role}'s content has a part of type {kind}; text alone is read")
    return str(part["text"])


def messages(value: Any) -> Messages:
    """Return messages as OpenAI or ShareGPT write them, one or a list of them; Malformed if they are none."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Malformed(f"expected a list of messages, found {'an empty one' if value == [] else called(value)}")
    return [_message(item) for item in value]


def _message(item: Any) -> dict[str, Any]:
    """Return a message: role and content, and where it has them `tool_calls` and `reasoning_content`."""
    if isinstance(item, Mapping) and "from" in item and "value" in item:
        if item["from"] not in _SHAREGPT:
            raise Malformed("a turn whose `from` is not one of " + ", ".join(sorted(_SHAREGPT)))
        role, content = str(item["from"]), item["value"]
    elif isinstance(item, Mapping) and "role" in item and ("content" in item or item.get("tool_calls")):
        role, content = str(item["role"]), item.get("content")
    else:
        raise Malformed("a message without role or content")
    _refuse_lost(item, _ROLES.get(role, role))
    calls = [*(item.get("tool_calls") or []), *([item["function_call"]] if item.get("function_call") else [])]
    if role in ("function_call", "tool_call"):
        calls, content = [*calls, *_listed(_loaded(content, role))], ""
    found = turn(_ROLES.get(role, role), "" if content is None else content)
    if calls:
        found["tool_calls"] = [_call(call) for call in calls]
    if reasoning := next((item[name] for name in _REASONING if item.get(name)), None):
        if not isinstance(reasoning, str):
            raise Malformed(f"the {role}'s reasoning is {called(reasoning)}, not text")
        found["reasoning_content"] = reasoning
    return found | {name: str(item[name]) for name in ("name", "tool_call_id") if item.get(name)}


def _refuse_lost(item: Mapping[str, Any], role: str) -> None:
    """Raise Malformed where a message holds more than text, or is an answer that is not to be trained on."""
    lost = {name: MATTERS[name] for name in _MEDIA if item.get(name)}
    if role == "assistant":
        not_this = "says not to train on this answer, but every answer of a conversation is trained on"
        lost |= {name: not_this for name in _UNTRAINED if item.get(name) in (0, "0")}
    if lost:
        name, why = next(iter(lost.items()))
        raise Malformed(f"{name} of a message {why}; `ignore: [{name}]` in a recipe leaves it out")


def _call(value: Any) -> dict[str, Any]:
    """Return a call of a tool as templates read it, its arguments an object."""
    called = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(called, Mapping) or not isinstance(called.get("name"), str):
        raise Malformed("a call of a tool without its name")
    arguments = called.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _loaded(arguments, "arguments")
    arguments = (
        {key: item for key, item in arguments.items() if item is not None} if isinstance(arguments, Mapping) else arguments
    )
    marked = {"id": str(value["id"])} if value.get("id") else {}
    return marked | {"type": "function", "function": {"name": called["name"], "arguments": arguments}}


def _loaded(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise Malformed(f"{what}: no JSON ({error})") from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def spoken(row: Mapping[str, Any], column: str, role: str) -> Messages:
    """Return a column's messages, or its string as one message of `role`; an answer that is null is an empty one."""
    value = row[column]
    if isinstance(value, str) or (value is None and role == "assistant"):
        return [turn(role, value or "")]
    if not isinstance(value, (list, Mapping)):
        raise Malformed(f"{column} is {called(value)}, neither text nor messages")
    return messages(value)


def framed(row: Mapping[str, Any], turns: Messages) -> Messages:
    """Return a conversation with what stands in columns beside it: the system's words, earlier turns, tools.

    The tools are a list under `tools` of the first message, so that they go wherever the conversation goes.
    """
    given = row.get("chat_template_kwargs") or {}
    column = row.get("system") or row.get("system_prompt")
    system = column or given.get("custom_instructions")
    before: Messages = []
    for item in row.get("history") or []:
        pair = isinstance(item, (list, tuple)) and len(item) == 2
        before += [turn("user", item[0]), turn("assistant", item[1])] if pair else messages(item)
    found = [*before, *turns]
    if system and found[0]["role"] != "system":
        found = [turn("system", system), *found]
    elif column and found[0]["content"].strip() != str(column).strip():
        raise Malformed(
            "the system's words stand in a column and, otherwise, in the first message; `ignore` the one or the other"
        )
    tools = row.get("tools") or row.get("functions") or [*(given.get("xml_tools") or []), *(given.get("python_tools") or [])]
    if tools:
        listed = [_loaded(tool, "tools") for tool in _listed(_loaded(tools, "tools"))]
        if not all(isinstance(tool, Mapping) for tool in listed):
            raise Malformed("tools: expected a list of objects, or their JSON")
        named = [
            dict(tool) if "function" in tool or "name" not in tool else {"type": "function", "function": dict(tool)}
            for tool in listed
        ]
        found = [found[0] | {"tools": named}, *found[1:]]
    return found


def said(turns: Messages) -> str:
    """Return what is said in messages, calls of tools aside, as one text."""
    return "\n\n".join(words(item["content"]) for item in turns)


def silent(item: Mapping[str, Any]) -> bool:
    """Say whether a message says nothing and calls nothing."""
    return not words(item["content"]).strip() and not item.get("tool_calls")

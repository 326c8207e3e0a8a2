"""The shapes that rows take, and the common layouts that are recognised and converted to them.

`text`: {"text": str}. `messages`: {"messages": [{"role", "content"}, …]}, ending with the assistant.
`preference`: {"prompt": messages, "chosen": messages, "rejected": messages}.
`labels`: {"text": str, "label": str}, and a "text_pair" where two texts are read together.
`answers`: {"context": str, "question": str, "answers": [{"text": str, "start": int}, …]}, none where there is no answer.
`tags`: {"tokens": [str, …], "tags": [str, …]}. `translation`: {"source": str, "target": str}.
`similarity`: {"text": str, "text_pair": str, "score": float}.
Any row may have a "group" where rows belong together, so that they are never on both sides of a split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.system.errors import UserError

Row = dict[str, Any]
SHAPES = ("text", "messages", "preference", "labels", "answers", "tags", "translation", "similarity")
_TEXTS = {  # of each shape, what may not be empty
    "text": ("text",), "labels": ("text", "text_pair", "label"), "answers": ("context", "question"), "tags": ("tokens",),
    "translation": ("source", "target"), "similarity": ("text", "text_pair"),
}  # fmt: skip
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


_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)


def _label(*texts: str) -> Callable[[Mapping[str, Any]], Row]:
    def convert(row: Mapping[str, Any]) -> Row:
        label = row["label"]
        if isinstance(label, (list, Mapping)):
            raise Malformed(f"label is {type(label).__name__}, not one label")
        named = dict(zip(("text", "text_pair"), (_text(row, key) for key in texts), strict=False))
        none = label is None or label == -1  # how public data says that there is none
        return named | {"label": "" if none else str(label)}

    return convert


def _score(*texts: str) -> Callable[[Mapping[str, Any]], Row]:
    def convert(row: Mapping[str, Any]) -> Row:
        try:
            score = float(row["score"])
        except (TypeError, ValueError):
            raise Malformed(f"score is {row['score']!r}, not a number") from None
        if not math.isfinite(score):
            raise Malformed(f"score is {row['score']!r}")
        return {"text": _text(row, texts[0]), "text_pair": _text(row, texts[1]), "score": score}

    return convert


def _question(row: Mapping[str, Any]) -> Row:
    """Convert SQuAD's columns, the space around an answer aside; questions about one context belong together."""
    context, given = _text(row, "context"), row["answers"]
    if not isinstance(given, Mapping) or not {"text", "answer_start"} <= given.keys():
        raise Malformed("answers has not the columns text and answer_start")
    texts, starts = given["text"], given["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise Malformed("answers: text and answer_start are no lists of the same length")
    answers = []
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise Malformed(f"answers: {text!r} is no text; a question without an answer has none")
        if not isinstance(start, int) or context[start : start + len(text)] != text:
            raise Malformed(f"answers: {text[:40]!r} does not stand at {start} of the context")
        answers.append({"text": text.strip(), "start": start + len(text) - len(text.lstrip())})
    group = hashlib.sha256(context.encode()).hexdigest()[:12]
    return {"context": context, "question": _text(row, "question"), "answers": answers, "group": group}


def _tags(column: str) -> Callable[[Mapping[str, Any]], Row]:
    def convert(row: Mapping[str, Any]) -> Row:
        words, tags = row["tokens"], row[column]
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise Malformed(f"tokens and {column} are no lists of the same length")
        return {"tokens": [str(word) for word in words], "tags": [str(tag) for tag in tags]}

    return convert


def _translation(source: str, target: str) -> Callable[[Mapping[str, Any]], Row]:
    return lambda row: {"source": _text(row, source), "target": _text(row, target)}


def _languages(row: Mapping[str, Any]) -> Row:
    """Convert WMT's column, {"en": …, "de": …}: from the first language to the second."""
    both = row["translation"]
    if not isinstance(both, Mapping) or len(both) != 2:
        raise Malformed("translation has not two languages")
    source, target = both
    return {"source": _text(both, source), "target": _text(both, target)}


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
        *((f"{one}, {two} and label", frozenset({one, two, "label"}), _label(one, two)) for one, two in _PAIRS),
        ("text and label", frozenset({"text", "label"}), _label("text")),
        ("sentence and label", frozenset({"sentence", "label"}), _label("sentence")),
    ],
    "answers": [("SQuAD", frozenset({"context", "question", "answers"}), _question)],
    "tags": [
        ("tokens and ner_tags", frozenset({"tokens", "ner_tags"}), _tags("ner_tags")),
        ("tokens and tags", frozenset({"tokens", "tags"}), _tags("tags")),
    ],
    "translation": [
        ("source and target", frozenset({"source", "target"}), _translation("source", "target")),
        ("two languages", frozenset({"translation"}), _languages),
        ("document and summary", frozenset({"document", "summary"}), _translation("document", "summary")),
        ("article and highlights", frozenset({"article", "highlights"}), _translation("article", "highlights")),
    ],
    "similarity": [(f"{one}, {two} and score", frozenset({one, two, "score"}), _score(one, two)) for one, two in _PAIRS],
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
    if shape in _TEXTS:
        empty = [name for name in _TEXTS[shape] if name in row and not "".join(row[name]).strip()]
        return f"empty {empty[0]}" if empty else None
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

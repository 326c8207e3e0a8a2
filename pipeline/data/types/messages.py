"""Conversations: {"messages": [{"role": str, "content": str}, …]}, ending with the assistant.

A message may have `tool_calls` and `reasoning_content`, and the first one `tools`; templates that know them write them. Where
a row has `images`, a content may be a list of parts, {"type": "text", "text": str} or {"type": "image"}, the place of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, Format, Row
from pipeline.data.types import Messages as Turns
from pipeline.data.types._columns import FRAME, MATTERS, framed, messages, silent, spoken, text, turn
from pipeline.data.types._pictures import IMAGE, IMAGES, TEXTS, Conversations, message_picture, with_picture_formats
from pipeline.data.types._trees import TREE, best_answers
from pipeline.models import parts


def _alpaca(question: str, more: str, answer: str) -> Convert:
    """Return what converts an instruction, the text that it is about, and what was answered."""

    def convert(row: Mapping[str, Any]) -> Row:
        asked = "\n\n".join(part for part in (text(row, question), row.get(more) or "") if part)
        return {"messages": framed(row, [turn("user", asked), *spoken(row, answer, "assistant")])}

    return convert


def _listed(column: str) -> Convert:
    return lambda row: {"messages": framed(row, messages(row[column]))}


def _two(asked: str, answered: str) -> Format:
    """Return a format of two columns, each a string or messages."""

    def convert(row: Mapping[str, Any]) -> Row:
        return {"messages": framed(row, spoken(row, asked, "user") + spoken(row, answered, "assistant"))}

    return Format(f"{asked} and {answered}", frozenset({asked, answered}), convert, FRAME)


def _caption(column: str) -> Convert:
    """Return what converts a picture and what is said of it: the picture alone asks for the text."""

    def convert(row: Mapping[str, Any]) -> Row:
        asked = {"role": "user", "content": [{"type": IMAGE}]}
        return {"messages": [asked, turn("assistant", text(row, column))], IMAGES: [message_picture(row[IMAGE])]}

    return convert


class Messages(Conversations):
    """One conversation a row; its last message is the assistant's."""

    columns = "`messages`: a conversation, a list of `role` and `content`"
    items = "conversations"
    matters: ClassVar[Mapping[str, str]] = MATTERS
    formats = with_picture_formats((
        Format("OpenAI messages", frozenset({"messages"}), _listed("messages"), FRAME),
        Format("ShareGPT", frozenset({"conversations"}), _listed("conversations"), FRAME),
        Format("OpenAssistant trees", TREE, lambda row: [{"messages": turns} for turns in best_answers(row)]),
        Format("Alpaca", frozenset({"instruction", "output"}), _alpaca("instruction", "input", "output"), FRAME | {"input"}),
        Format("Dolly", frozenset({"instruction", "response"}), _alpaca("instruction", "context", "response"), FRAME | {"context"}),
        _two("prompt", "completion"),
        _two("prompt", "response"),
        _two("question", "answer"),
        _two("question", "response"),
    )) + tuple(Format(f"image and {name}", frozenset({IMAGE, name}), _caption(name)) for name in TEXTS)  # fmt: skip

    def fault(self, row: Row) -> str | None:
        """Return why a conversation teaches nothing, or None."""
        turns = row["messages"]
        if all(item["role"] != "assistant" or silent(item) for item in turns):
            return "no assistant text"
        if turns[-1]["role"] != "assistant":
            return "does not end with the assistant"
        if any(item["role"] == "assistant" and silent(item) for item in turns):
            return "empty assistant turn"
        return self.unseen(row, "messages", ())

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return answers that are all the same, placeholders, or what was asked."""
        last = [row["messages"][-1] for row in rows]
        return [
            *super().doubts(rows),
            doubts.same_answer([f"{turn['content']}{turn.get('tool_calls', '')}" for turn in last]),
            doubts.gaps(turn["content"] for turn in last),
            doubts.cut([turn["content"] for turn in last]),
            doubts.repeated(
                [parts.words(row["messages"][-2]["content"]) if len(row["messages"]) > 1 else "" for row in rows],
                [turn["content"] for turn in last],
            ),
        ]

    def prompt(self, row: Row) -> Turns | None:
        """Return all that comes before the assistant's last message, pictures in their places; None where nobody has said anything by then."""
        return parts.filled(row["messages"][:-1], row.get(IMAGES, ())) or None


TYPE = Messages()

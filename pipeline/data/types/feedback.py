"""One answer with a thumb up or down: {"prompt": messages, "completion": messages, "label": bool}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, Format, Malformed, Messages, Row
from pipeline.data.types._columns import FRAME, MATTERS, framed, messages, said, silent, spoken, thumb
from pipeline.data.types._pictures import IMAGES, Conversations, with_picture_formats
from pipeline.models import parts


def _thumb(value: Any) -> bool:
    """Return whether a thumb is up, as data sets write it; Malformed if it is anything else."""
    known = thumb(value)
    if known is None:
        raise Malformed(f"label is {value!r}, neither a thumb up (true, 1, up) nor down (false, 0, down)")
    return known


def _rated(answer: str) -> Convert:
    """Return what converts a prompt and an answer, as strings or messages."""

    def convert(row: Mapping[str, Any]) -> Row:
        prompt, completion = spoken(row, "prompt", "user"), spoken(row, answer, "assistant")
        if completion[: len(prompt)] == prompt:  # messages that repeat the prompt
            completion = completion[len(prompt) :]
        return {"prompt": framed(row, prompt), "completion": completion, "label": _thumb(row["label"])}

    return convert


def _conversation(column: str) -> Convert:
    """Return what converts a whole conversation, of which the last message was rated."""

    def convert(row: Mapping[str, Any]) -> Row:
        if isinstance(row[column], str):
            raise Malformed(f"{column} is a string, but there is no prompt")
        turns = framed(row, messages(row[column]))
        return {"prompt": turns[:-1], "completion": turns[-1:], "label": _thumb(row["label"])}

    return convert


class Feedback(Conversations):
    """A prompt, one answer, and whether somebody liked it."""

    columns = "`prompt` and `completion`, each a list of messages, and `label`, whether the answer was liked"
    items = "rated answers"
    asks = ("prompt",)
    matters: ClassVar[Mapping[str, str]] = MATTERS
    formats = with_picture_formats((
        Format("prompt, completion and label", frozenset({"prompt", "completion", "label"}), _rated("completion"), FRAME),
        Format("prompt, response and label", frozenset({"prompt", "response", "label"}), _rated("response"), FRAME),
        Format("completion and label", frozenset({"completion", "label"}), _conversation("completion"), FRAME),
        Format("messages and label", frozenset({"messages", "label"}), _conversation("messages"), FRAME),
        Format("ShareGPT and label", frozenset({"conversations", "label"}), _conversation("conversations"), FRAME),
    ))  # fmt: skip

    def fault(self, row: Row) -> str | None:
        """Return why nothing is learned from a row, or None."""
        if not isinstance(row["label"], bool):
            return "label neither true nor false"
        if not row["prompt"]:
            return "no prompt"
        if not row["completion"] or silent(row["completion"][-1]):
            return "empty completion"
        if row["completion"][-1]["role"] != "assistant":
            return "does not end with the assistant"
        return self.unseen(row, "prompt", ("completion",))

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return answers that were rated both up and down, nearly all alike, or are placeholders."""
        shown = [[one["hash"] for one in row.get(IMAGES, ())] for row in rows]
        rated = [
            ((repr([row["prompt"], *images]), repr(row["completion"])), row["label"])
            for row, images in zip(rows, shown, strict=True)
        ]
        known = set(rated)
        both = sum((answer, not label) in known for answer, label in rated)
        up = sum(row["label"] for row in rows)
        few, side = min((up, "up"), (len(rows) - up, "down"))
        return [
            Doubt(both, 0.02, "contradict another: the same answer, rated up and down", 0.9),
            Doubt(len(rows) - few if 0 < few <= 0.02 * len(rows) else 0, 0.0, f"have the same thumb: only {few:,} are {side}"),
            doubts.gaps(row["completion"][-1]["content"] for row in rows),
            doubts.cut([row["completion"][-1]["content"] for row in rows]),
            *super().doubts(rows),
        ]

    def document(self, row: Row) -> str:
        """Return the prompt and the answer, whether it was liked or not."""
        return said(row["prompt"] + row["completion"])

    def prompt(self, row: Row) -> Messages | None:
        """Return the prompt, pictures in their places."""
        return parts.filled(row["prompt"], row.get(IMAGES, ()))


TYPE = Feedback()

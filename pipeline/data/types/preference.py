"""Pairs of answers to one prompt: {"prompt": messages, "chosen": messages, "rejected": messages}."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.data import doubts
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, Format, Malformed, Messages, Row
from pipeline.data.types._columns import FRAME, MATTERS, framed, messages, said, silent, spoken, turn
from pipeline.data.types._pictures import IMAGES, Conversations, with_picture_formats
from pipeline.data.types._trees import TREE, ranked_pairs
from pipeline.models import parts

_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPOKEN = re.compile(r"\n\n(Human|Assistant):")


def _answers(prompt: str, chosen: str, rejected: str) -> Convert:
    """Return what converts both answers, as strings or messages, and their prompt, which messages may repeat."""

    def convert(row: Mapping[str, Any]) -> Row:
        if row.get(prompt) is None:
            return _inside(row, chosen, rejected)
        asked, sides = spoken(row, prompt, "user"), [spoken(row, side, "assistant") for side in (chosen, rejected)]
        if all(side[: len(asked)] == asked for side in sides):
            sides = [side[len(asked) :] for side in sides]
        elif all(
            side[0]["role"] != "assistant" and len(side) > 1 for side in sides
        ):  # the whole conversation; the prompt is part of it
            return _inside(row, chosen, rejected)
        return {"prompt": framed(row, asked), "chosen": sides[0], "rejected": sides[1]}

    return convert


def _inside(row: Mapping[str, Any], chosen: str, rejected: str) -> Row:
    """Convert two conversations, of which what they begin with is the prompt."""
    if isinstance(row[chosen], str) or isinstance(row[rejected], str):
        raise Malformed(f"{chosen} and {rejected} are strings, but there is no prompt")
    return _split(framed(row, messages(row[chosen])), framed(row, messages(row[rejected])))


def _split(left: Messages, right: Messages) -> Row:
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    same = min(same, len(left) - 1)  # two equal sides still have a prompt and an answer each
    return {"prompt": left[:same], "chosen": left[same:], "rejected": right[same:]}


def _dialogue(value: str) -> Messages:
    """Return the turns of a dialogue as Anthropic writes it, in one string."""
    _, *parts = _SPOKEN.split(value)
    return [turn(_SPEAKERS[name], words.strip()) for name, words in zip(parts[::2], parts[1::2], strict=True)]


def _is_dialogue(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row[side], str) and _SPOKEN.match(row[side]) for side in ("chosen", "rejected"))


_SIDES = frozenset({"chosen", "rejected"})


class Preference(Conversations):
    """One prompt a row, with the answer that was preferred and the one that was not."""

    columns = "`prompt`, `chosen`, `rejected`: each a list of messages"
    items = "pairs"
    asks = ("prompt",)
    matters: ClassVar[Mapping[str, str]] = MATTERS
    formats = with_picture_formats((
        Format("ShareGPT pairs", _SIDES | {"conversations"}, _answers("conversations", "chosen", "rejected"), FRAME),
        Format("Human and Assistant", _SIDES, lambda row: _split(_dialogue(row["chosen"]), _dialogue(row["rejected"])), when=_is_dialogue),
        Format("question, chosen and rejected", _SIDES | {"question"}, _answers("question", "chosen", "rejected"), FRAME),
        Format("chosen and rejected", _SIDES, _answers("prompt", "chosen", "rejected"), FRAME | {"prompt"}),
        Format("chosen_messages and rejected_messages", frozenset({"chosen_messages", "rejected_messages"}),
               _answers("prompt", "chosen_messages", "rejected_messages"), FRAME | {"prompt"}),
        Format("OpenAssistant trees", TREE, ranked_pairs),
    ))  # fmt: skip

    def fault(self, row: Row) -> str | None:
        """Return why nothing can be preferred here, or None."""
        if not row["prompt"]:
            return "no prompt"
        for side in ("chosen", "rejected"):
            if not row[side] or silent(row[side][-1]):
                return f"empty {side}"
            if row[side][-1]["role"] != "assistant":
                return f"{side} does not end with the assistant"
        return (
            "chosen equals rejected" if row["chosen"] == row["rejected"] else self.unseen(row, "prompt", ("chosen", "rejected"))
        )

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return pairs of which the opposite is there, too, or whose sides differ in blanks or case alone, are the same in all, or placeholders."""
        shown = [[one["hash"] for one in row.get(IMAGES, ())] for row in rows]
        sides = [
            (repr([row["prompt"], *images]), repr(row["chosen"]), repr(row["rejected"]))
            for row, images in zip(rows, shown, strict=True)
        ]
        known = set(sides)
        opposite = sum((prompt, rejected, chosen) in known for prompt, chosen, rejected in sides)
        alike = sum(doubts.plain(left) == doubts.plain(right) for _, left, right in sides)
        return [
            Doubt(opposite, 0.02, "are contradicted by another: the same answers, the other one chosen", 0.9),
            Doubt(alike, 0.1, "have sides that differ in blanks or case alone", 0.9),
            doubts.same([chosen for _, chosen, _ in sides], "have the same chosen answer"),
            doubts.same([rejected for _, _, rejected in sides], "have the same rejected answer"),
            Doubt(sum(_echoes(row) for row in rows), 0.5, "have sides that begin with the prompt itself: cut it off"),
            *(doubts.gaps(row[side][-1]["content"] for row in rows) for side in ("chosen", "rejected")),
            doubts.cut([row["chosen"][-1]["content"] for row in rows]),
            *super().doubts(rows),
        ]

    def document(self, row: Row) -> str:
        """Return the prompt and the answer that was preferred."""
        return said(row["prompt"] + row["chosen"])

    def prompt(self, row: Row) -> Messages | None:
        """Return the prompt, pictures in their places."""
        return parts.filled(row["prompt"], row.get(IMAGES, ()))


def _echoes(row: Row) -> bool:
    """Say whether both sides begin with what was asked, word for word."""
    asked = parts.words(row["prompt"][-1]["content"]).strip()
    return bool(asked) and all(
        parts.words(row[side][0]["content"]).strip().startswith(asked) for side in ("chosen", "rejected")
    )


TYPE = Preference()

"""Encoded conversations whose chat template shows in training what generation asks for, checked row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.data.tokens import Tokens, encode_answers, encode_messages
from pipeline.data.types import Messages, Row
from pipeline.models import control, parts
from pipeline.models.chat_template import Writer
from pipeline.models.logits import IGNORED
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _ANSWER = 64, {"role": "assistant", "content": "an answer"}  # prompts that are looked at, and what stands after them
_WORD = 4  # letters below which a text may stand among the targets by chance


def conversation(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Return ids and labels of a conversation; UserError where its template shows or trains something else than it says."""
    writer = Writer(tokenizer)
    encoded = encode_messages(messages, tokenizer, writer)
    _agrees(messages, len(messages) - 1, writer)
    _begins_once(encoded["input_ids"], tokenizer)
    learned = _letters(str(tokenizer.decode([label for label in encoded["labels"] if label != IGNORED])))
    spoken = [(turn, said) for turn in messages for said in map(_letters, parts.texts(turn["content"]))]
    for turn, said in sorted(spoken, key=lambda one: one[0]["role"] != "assistant"):
        if turn["role"] == "assistant":
            learned = learned.replace(said, "\n")
        elif len(said) >= _WORD and said in learned:
            raise UserError(
                f"chat_template: makes targets of what the {turn['role']} says; put the generation tags around the assistant's "
                "text and its end token alone"
            )
    return encoded


def answers(row: Row, tokenizer: PreTrainedTokenizerBase, columns: Sequence[str]) -> Tokens:
    """Return `prompt_ids` and the ids of each column of answers; UserError as `conversation` raises it."""
    writer = Writer(tokenizer)
    encoded = encode_answers(row, tokenizer, columns, writer)
    for column in columns:
        _agrees(row["prompt"] + row[column], len(row["prompt"]), writer)
    _begins_once(encoded["prompt_ids"], tokenizer)
    return encoded


def pair(row: Row, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Return `prompt_ids`, `chosen_ids` and `rejected_ids`; UserError as `conversation` raises it."""
    return answers(row, tokenizer, ("chosen", "rejected"))


def asked(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where a template does not ask for an answer to the first prompts as it would show one."""
    for row in (rows[at] for at in range(min(_ASKED, len(rows)))):
        writer = Writer(tokenizer)
        try:
            _agrees([*row["prompt"], _ANSWER], len(row["prompt"]), writer)
        except control.Unfit:  # which is dropped and counted where rows are encoded
            continue
        _begins_once(writer.ids(row["prompt"], answer_next=True), tokenizer)


def _agrees(messages: Messages, start: int, writer: Writer) -> None:
    """Raise UserError where a conversation is not what asks for the message at `start`, followed by it, or lacks a text.

    Texts are compared, since a token may reach over the border. What an assistant said before its last turn may be left out:
    templates of models that reason do so. Some put what the system says before the last question, and write what a tool says as JSON.
    """
    shown = writer.text(messages)
    letters, at = _letters(shown), 0
    spoken = [(number, turn, text) for number, turn in enumerate(messages) for text in parts.texts(turn["content"])]
    for number, turn, text in spoken:
        said = _letters(text)
        found = letters.find(said, at)
        if turn["role"] not in ("user", "assistant") and (said in letters or _letters(json.dumps(text)[1:-1]) in letters):
            continue
        if found >= 0:
            at = found + len(said)
        elif turn["role"] != "assistant" or number == len(messages) - 1:
            raise UserError(
                f"chat_template: drops or changes what the {turn['role']} says: {text[:60]!r} is not in the conversation"
            )
    if not start:  # nobody asks
        return
    prompt, answer = messages[:start], parts.words(messages[start]["content"]).strip()
    asked = writer.text(prompt, answer_next=True)
    if not shown.startswith(asked):
        at = next((at for at, (a, b) in enumerate(zip(asked, shown, strict=False)) if a != b), min(len(asked), len(shown)))
        raise UserError(
            f"chat_template: generation asks with {asked[max(0, at - 20) : at + 30]!r} where training shows "
            f"{shown[max(0, at - 20) : at + 30]!r}; what add_generation_prompt adds must be what stands before an answer"
        )
    before = shown[len(asked) :].partition(answer)[0] if answer else ""  # an answer may be a call of a tool
    if _letters(before) and writer.text(prompt) == asked:
        raise UserError(
            f"chat_template: add_generation_prompt adds nothing, while training shows {before!r} before an answer, which "
            "generation would have to guess; give the template a generation prompt"
        )


def _begins_once(ids: Sequence[int], tokenizer: Any) -> None:
    if len(ids) > 1 and tokenizer.bos_token_id is not None and ids[0] == ids[1] == tokenizer.bos_token_id:
        raise UserError(f"chat_template: begins with {tokenizer.bos_token} twice; no model has seen a text that begins so")


def _letters(text: str) -> str:
    return "".join(text.split())

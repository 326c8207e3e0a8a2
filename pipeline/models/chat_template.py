"""Conversations as a chat template writes them, as text and as tokens."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.models import control, parts
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[Mapping[str, Any]]


class _Written(NamedTuple):
    """What a template made of a conversation, and where in it the assistant speaks, if the template says so."""

    text: str
    generated: list[tuple[int, int]]


class Writer:
    """Writes conversations by a chat template, each only once while it has this writer and its messages are the same objects.

    Tools lie under `tools` of the first message. Raises UserError if the template is broken, and control.Unfit for a
    conversation that it refuses.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._special = tokenizer.special_tokens_map
        self.tagged = tags_answers(str(tokenizer.chat_template))
        self._written: dict[tuple[int, ...], _Written] = {}
        self._ids: dict[tuple[int, ...], list[int]] = {}
        self._messages: list[Mapping[str, Any]] = []  # which must live as long as their numbers are keys

    def text(self, messages: Turns, answer_next: bool = False) -> str:
        """Return a conversation as text."""
        return self._write(messages, answer_next).text

    def ids(self, messages: Turns, answer_next: bool = False) -> list[int]:
        """Return the ids of a conversation, which belong to the writer."""
        key = (*map(id, messages), answer_next)
        if key not in self._ids:
            self._ids[key] = self.encoded(messages, answer_next=answer_next)["input_ids"]
        return self._ids[key]

    def encoded(self, messages: Turns, mask: bool = False, answer_next: bool = False) -> dict[str, list[int]]:
        """Return `input_ids` of a conversation, and with `mask` `assistant_masks`: 1 where the assistant speaks.

        What looks like a special token in a text stays text. Raises UserError also for what the template does not write.
        """
        turns, tools = _with_tools(messages)
        with _faults():
            _check_written(self.tokenizer, turns, tools)
            if control.within(self.tokenizer, messages):
                return control.conversation(self.tokenizer, turns, mask, answer_next, tools)
        written = self._write(messages, answer_next)
        ids, token_at = self._tokens(written.text)
        if not mask:
            return {"input_ids": ids}
        on = [0] * len(ids)
        for start, end in written.generated:
            first, last = token_at(start), token_at(end - 1)
            if first is not None:
                after = len(ids) if last is None else last + 1
                on[first:after] = [1] * (after - first)
        return {"input_ids": ids, "assistant_masks": on}

    def _tokens(self, text: str) -> tuple[list[int], Callable[[int], int | None]]:
        """Return the ids of a text, and what says which token a character is in; straight from the library in Rust, if it can."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            made = self.tokenizer(text, add_special_tokens=False)
            return list(made["input_ids"]), made.char_to_token
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(self.tokenizer.split_special_tokens)
        encoding = backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.char_to_token

    def _write(self, messages: Turns, answer_next: bool) -> _Written:
        key = (*map(id, messages), answer_next)
        if key not in self._written:
            self._messages.extend(messages)
            self._written[key] = self._rendered(messages, answer_next)
        return self._written[key]

    def _rendered(self, messages: Turns, answer_next: bool) -> _Written:
        """Write a conversation as `apply_chat_template` does, which gives either its text or where the assistant speaks."""
        from transformers.utils import chat_template_utils as library

        turns, tools = _with_tools(messages)
        if not turns:
            raise UserError("a conversation without messages can't be written")
        given = [{key: value for key, value in turn.items() if value is not None} for turn in turns]
        write: Any = library.render_jinja_template  # annotated as if it returned a string
        with _faults():
            (text,), generated = write(
                [given], tools=tools, chat_template=self.tokenizer.get_chat_template(tools=tools),
                return_assistant_tokens_mask=self.tagged, add_generation_prompt=answer_next, **self._special,
            )  # fmt: skip
        return _Written(str(text), list(generated[0]) if generated else [])


@lru_cache(maxsize=64)
def tags_answers(template: str) -> bool:
    """Say whether a template marks what the assistant says by generation tags."""
    return bool(re.search(r"\{%-?\s*generation\b", template))


def _check_written(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, Any]], tools: Any) -> None:
    """Raise UserError for tools, calls or reasoning of which a template knows nothing, Refused for a role that it leaves out."""
    template = str(tokenizer.get_chat_template(tools=tools)) if tools else str(tokenizer.chat_template)
    given = {name for turn in turns for name in _CARRIED if turn.get(name)} | ({"tools"} if tools else set())
    for name in sorted(given):
        if not re.search(rf"\b({_CARRIED[name]})\b", template):
            raise UserError(
                f"chat_template: writes no {name}, which rows have; take one that does, such as chatml-tools.jinja, "
                f"or leave them out on purpose by `ignore: [{name}]` in the source of a recipe"
            )
    if parts.count(turns) and parts.token_of(tokenizer) is None:
        raise UserError(
            "rows hold pictures, and the model sees none: give a stage that can a vision tower (`vision:` and `tower: frozen`), or leave "
            "the rows out"
        )
    for role in dict.fromkeys(turn["role"] for turn in turns):
        if role not in ("user", "assistant") and not _writes(tokenizer, template, role):
            raise control.Refused(f"role {role}, which the chat template leaves out")


# What a message carries beside its content → what a template that writes it reads.
_CARRIED = {"tool_calls": "tool_calls", "reasoning_content": "reasoning_content|thinking|reasoning", "tools": "tools"}


@lru_cache(maxsize=256)
def _writes(tokenizer: PreTrainedTokenizerBase, template: str, role: str) -> bool:
    """Say whether a template writes what somebody of a role says; yes where it refuses that by itself."""
    import jinja2

    probe, asked = {"role": role, "content": "probe8315"}, {"role": "user", "content": "a"}
    called = {"type": "function", "function": {"name": "b", "arguments": {}}}
    answer = (
        {"role": "assistant", "content": "", "tool_calls": [called]}
        if role == "tool"
        else {"role": "assistant", "content": "b"}
    )
    turns: Any = [probe, asked] if role == "system" else [asked, answer, probe]
    try:
        return "probe8315" in str(tokenizer.apply_chat_template(turns, tokenize=False, chat_template=template))
    except (jinja2.TemplateError, TypeError):
        return True


def _with_tools(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """Return messages and the tools that lie under `tools` of the first."""
    turns = [dict(message) for message in messages]
    return turns, turns[0].pop("tools", None) if turns else None


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Raise UserError for whatever a template raises while it is written; Refused for what it raises itself."""
    import jinja2

    try:
        yield
    except jinja2.TemplateError as error:
        if type(error) is jinja2.TemplateError:
            raise control.Refused(f"refused by the chat template: {error}") from None
        raise UserError(f"chat_template: {error}") from None
    except UserError:
        raise
    except Exception as error:
        if not any(frame.f_code.co_filename == "<template>" for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise
        said = "it needs too much memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
        raise UserError(f"chat_template: {said}") from None

"""Control tokens: only templates write them; in the text of a row their names stay text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Unfit(UserError):
    """A conversation that can't be written as tokens; `reason` is what is counted where it is dropped for that."""

    reason = "refused by the chat template"


class NotText(Unfit):
    """A conversation names a control token that its tokenizer can't read as text."""

    reason = "names a control token that the tokenizer can't read as text"


class Refused(Unfit):
    """A conversation that the chat template refuses, or of which it would leave out a message."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"chat_template: {reason}")
        self.reason = reason


def within(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a conversation names a control token."""
    names = _names(tokenizer, len(tokenizer))
    return any(names.search(text) for message in messages for text in _texts(message))


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value; of objects what stands under their keys, the role of a message aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from () if key == "role" else _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


@lru_cache(maxsize=16)
def _names(tokenizer: PreTrainedTokenizerBase, size: int) -> re.Pattern[str]:
    """Return what matches a control token: every special one but that of unknown text; `size` grows with added tokens."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    roles = [str(token) for name, token in tokenizer.special_tokens_map.items() if name != "unk_token"]
    if tokenizer.unk_token not in roles:  # GPT-2 has one token for all roles
        special.discard(str(tokenizer.unk_token))
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")


def conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], mask: bool, answer_next: bool, tools: Any = None
) -> dict[str, list[int]]:
    """Return `input_ids` of a conversation that names control tokens, and with `mask` `assistant_masks`, as its template says.

    Raises NotText where a tokenizer makes a control token even of plain text.
    """
    from transformers.utils import chat_template_utils as library

    write: Any = library.render_jinja_template  # annotated as if it returned a string
    marked, tools = (library.mark_control_tokens(given, _names(tokenizer, len(tokenizer))) for given in (list(messages), tools))
    rendered, generated = write(
        [marked], tools=tools, chat_template=tokenizer.get_chat_template(tools=tools), return_assistant_tokens_mask=mask,
        add_generation_prompt=answer_next, **tokenizer.special_tokens_map,
    )  # fmt: skip
    try:
        ids = list(library.encode_marked_chat(tokenizer, rendered[0]))
        if not mask:
            return {"input_ids": ids}
        # The library masks no marked text: what the assistant says is what lies beyond the tokens before it.
        on = [0] * len(ids)
        for place in generated[0]:
            start, end = (common(library.encode_marked_chat(tokenizer, rendered[0][:until]), ids) for until in place)
            on[start:end] = [1] * (end - start)
    except ValueError as error:
        raise NotText(f"a text names a control token ({error}); leave it out of the data") from None
    return {"input_ids": ids, "assistant_masks": on}


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading items two sequences share."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(left), len(right)))


def spelled(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return the ids of a plain text with each control token spelled by its characters.

    A Unigram model takes `</s>` for one piece, although its tokenizer was told to split special tokens.
    """
    found = _spellings(tokenizer, len(tokenizer))
    return [piece for token in ids for piece in found.get(token, (token,))] if found else ids


@lru_cache(maxsize=16)
def _spellings(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[int, tuple[int, ...]]:
    """Return, by control token that comes out of plain text, the ids of its characters; empty for nearly all tokenizers."""
    names = _names(tokenizer, size)
    vocabulary, made = tokenizer.get_vocab(), {}
    for name in filter(names.fullmatch, vocabulary):
        number = vocabulary[name]
        texts = (name, f"a{name}a", f"a {name} a")
        if any(number in tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts):
            model = getattr(tokenizer, "backend_tokenizer").model  # noqa: B009
            made[number] = tuple(piece.id for letter in name for piece in model.tokenize(letter))
    return made

"""Rows → tokens: ids and labels of texts, conversations and answers, in pieces that fit the model."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.data.types import Row
from pipeline.models import control
from pipeline.models.chat_template import Writer
from pipeline.models.control import common
from pipeline.models.logits import IGNORED
from pipeline.models.tokenization import stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = dict[str, list[int]]
Item = TypeVar("Item")
_BATCH, _CHARACTERS = 1000, 1_000_000  # rows and characters that are encoded, or examples and tokens that are written, at once
_owner = 0  # the process whose threads the tokenizers library has


def encode_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Return ids and labels of one document, begin and end token included; the first token is never a target."""
    (ids,) = document_ids([row["text"]], tokenizer)
    return {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}


def document_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the ids of documents, begin and end token included; of many documents on all cores."""
    begin, end = _begin(tokenizer), tokenizer.eos_token_id
    return [[begin, *ids, end] for ids in text_ids(texts, tokenizer)]


def _begin(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that begins a document; the one that ends it, where a tokenizer has no other."""
    return int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)


def text_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the ids of texts, without special tokens around them or in them; of many texts on all cores."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        return [list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) for text in texts]
    backend.no_truncation()
    backend.no_padding()
    with _threads(len(texts) > 1), _split(backend):
        found = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return [control.spelled(tokenizer, ids) for ids in found]


@contextlib.contextmanager
def _split(backend: Any) -> Iterator[None]:
    """Let the tokenizer read the names of special tokens as text."""
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        yield
    finally:
        backend.encode_special_tokens = before


@contextlib.contextmanager
def _threads(wanted: bool) -> Iterator[None]:
    """Let the tokenizer use its threads; elsewhere they are off, since processes are forked, and so they stay in these.

    They belong to the first process that used them: a fork of it has none, and would wait for them for ever.
    """
    global _owner
    wanted = wanted and multiprocessing.parent_process() is None and _owner in (0, os.getpid())
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    if wanted:
        _owner = os.getpid()
        os.environ[name] = "true"
    yield
    if wanted and before is not None:
        os.environ[name] = before


def documents(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of each row of text with its ids, without special tokens; rows are encoded in batches."""
    for batch in batched(enumerate(rows), lambda row: len(row[1]["text"])):
        ids = text_ids([row["text"] for _, row in batch], tokenizer)
        yield from zip((number for number, _ in batch), ids, strict=True)


def batched(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield items in lists of at most 1,000 and of about a million characters, as `size` counts them."""
    held: list[Item] = []
    total = 0
    for item in items:
        held.append(item)
        total += size(item)
        if len(held) == _BATCH or total >= _CHARACTERS:
            yield held
            held, total = [], 0
    if held:
        yield held


def encode_messages(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, writer: Writer | None = None
) -> Tokens:
    """Return ids and labels of a conversation; only what the assistant says, with its end token, is a target.

    A template with generation tags says itself what that is. Without them each answer is what the
    template adds after the prompt that asks for it, up to the token that ends it.
    `writer`: of the tokenizer, where it is asked for the same conversation elsewhere.
    """
    turns, writer = list(messages), writer or Writer(tokenizer)
    if writer.tagged:
        both = writer.encoded(turns, mask=True)
        ids, mask = both["input_ids"], both["assistant_masks"]
        return {"input_ids": ids, "labels": [token if on else IGNORED for token, on in zip(ids, mask, strict=True)]}
    ids = writer.ids(turns)
    labels = [IGNORED] * len(ids)
    stops = set(stop_ids(tokenizer))
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        start = common(writer.ids(turns[:index], answer_next=True), ids)
        end = common(writer.ids(turns[: index + 1]), ids)
        last = next((position for position in range(end - 1, start - 1, -1) if ids[position] in stops), end - 1)
        labels[start : last + 1] = ids[start : last + 1]
    return {"input_ids": ids, "labels": labels}


def encode_pair(row: Row, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Return `prompt_ids`, `chosen_ids` and `rejected_ids`; the sides end with the token that ends an answer."""
    return encode_answers(row, tokenizer, ("chosen", "rejected"))


def encode_answers(
    row: Row, tokenizer: PreTrainedTokenizerBase, columns: Sequence[str], writer: Writer | None = None
) -> Tokens:
    """Return `prompt_ids` and the ids of each column of answers to it, which end with the token that ends an answer.

    `writer`: as `encode_messages` has it.
    """
    writer = writer or Writer(tokenizer)
    prompt = writer.ids(row["prompt"], answer_next=True)
    sides = {}
    for side in columns:
        whole = writer.ids(row["prompt"] + row[side])
        prompt = prompt[: common(prompt, whole)]
        sides[side] = whole
    stops = set(stop_ids(tokenizer))
    encoded = {"prompt_ids": prompt}
    for side, whole in sides.items():
        answer = whole[len(prompt) :]
        last = next((position for position in range(len(answer) - 1, -1, -1) if answer[position] in stops), len(answer) - 1)
        encoded[f"{side}_ids"] = answer[: last + 1]
    return encoded


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Tokens:
    """Return ids and labels of an answer after its prompt; only the answer's tokens are targets."""
    return {"input_ids": [*prompt, *answer], "labels": [IGNORED] * len(prompt) + list(answer)}


def pieces(
    rows: Iterable[Row],
    encoder: Callable[[Row], Tokens],
    max_length: int | None,
    split: bool,
    dropped: Counter[str],
    too_long: Counter[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield encoded rows that fit `max_length`; count in `dropped` those that don't, and those without a target.

    `too_long` gets the lengths of those that don't, rounded up.

    A row of several columns of ids, such as chosen_input_ids and rejected_input_ids, is as long as the longest. Each carries the number of the row that it was made from, under `row`. With `split` a long document becomes
    pieces that share one token, so that each of its tokens is a target exactly once.
    """
    for number, row in enumerate(rows):
        try:
            tokens = encoder(row)
        except control.Unfit as error:
            dropped[error.reason] += 1
            continue
        columns = [ids for key, ids in tokens.items() if key.endswith("input_ids")]
        length = max(map(len, columns)) if columns else pair_length(tokens)
        if "labels" in tokens and all(label == IGNORED for label in tokens["labels"]):
            dropped["no token to learn from"] += 1
        elif max_length is None or length <= max_length:
            yield tokens | {"row": number}
        elif split:
            for start in range(0, length - 1, max_length - 1):
                ids = tokens["input_ids"][start : start + max_length]
                yield {"input_ids": ids, "labels": [IGNORED, *ids[1:]], "row": number}
        else:
            dropped[f"longer than max_length {max_length}"] += 1
            if too_long is not None:
                too_long[str(rounded(length))] += 1


def rounded(length: int) -> int:
    """Return a length rounded up by a sixteenth at most, so that there are few of them."""
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


def text_pieces(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[dict[str, Any]]:
    """Yield what `pieces` yields of documents that are split, each with its ids and labels as arrays, (length,) int32."""
    begin, end = _begin(tokenizer), tokenizer.eos_token_id
    for number, text in documents(rows, tokenizer):
        ids = np.array([begin, *text, end], np.int32)
        for start in range(0, max(1, len(ids) - 1), max_length - 1) if len(ids) > max_length else (0,):
            piece = ids[start : start + max_length]
            labels = piece.copy()
            labels[0] = IGNORED
            yield {"input_ids": piece, "labels": labels, "row": number}


def pair_length(tokens: Tokens) -> int:
    """Return the tokens of a prompt and the longest answer to it."""
    answers = [len(ids) for column, ids in tokens.items() if column.endswith("_ids") and column != "prompt_ids"]
    return len(tokens["prompt_ids"]) + max(answers)

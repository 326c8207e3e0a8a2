"""Rows → tokens: rendering, masks, packing row by row, and the batches that a causal model reads."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.data.types import Row
from pipeline.models import control
from pipeline.models.chat_template import Writer
from pipeline.models.control import common
from pipeline.models.logits import IGNORED
from pipeline.models.tokenization import stop_ids
from pipeline.system import cache
from pipeline.system.process import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from datasets import Dataset
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


def write(tokens: Iterable[dict[str, Any]], path: Path) -> Dataset:
    """Write token rows to an Arrow file, in batches, and open it as a data set that lies on disk."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    write_tables(tables(tokens), path)
    return datasets.Dataset.from_file(str(path))


def tables(tokens: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    """Yield token rows in tables, whose columns are those of the first row."""
    rows = iter(tokens)
    if first := next(rows, None):
        schema = _features(first).arrow_schema
        for batch in batched(itertools.chain([first], rows), _length):
            yield _table(batch, schema)


def write_tables(tables: Iterator[pa.Table], path: Path) -> int:
    """Write tables to an Arrow file with the columns of the first, each as a record batch; return how many rows they have."""
    import pyarrow as pa

    first, number = next(tables, _table([], _features(None).arrow_schema)), 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema) as stream:
        for table in itertools.chain([first], tables):
            stream.write_table(table.cast(first.schema).combine_chunks())
            number += len(table)
    return number


def table(tokens: Iterable[dict[str, Any]]) -> Dataset:
    """Return token rows as a data set in memory; for as many as a chunk of a stream has."""
    import datasets

    rows = list(tokens)
    return datasets.Dataset(_table(rows, _features(rows[0] if rows else None).arrow_schema))


def _features(first: Mapping[str, Any] | None) -> Any:
    """Return the columns of token rows by the first of them."""
    import datasets

    kinds = {int: datasets.Value("int32"), float: datasets.Value("float32"), bytes: datasets.Value("binary")}

    def kind(value: Any) -> Any:
        numbers = float if np.asarray(value).dtype.kind == "f" and len(value) else int  # an empty list is one of ids
        return datasets.List(kinds[numbers])

    found = first or {"input_ids": []}
    return datasets.Features({key: kinds.get(type(value)) or kind(value) for key, value in found.items()})


def _table(rows: Sequence[Mapping[str, Any]], schema: Any) -> pa.Table:
    import pyarrow as pa

    # Given the type at once, pyarrow cuts fractions to whole numbers without a word; a cast raises.
    columns = [pa.array([row[name] for row in rows]).cast(schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


def _length(row: Mapping[str, Any]) -> int:
    return sum(len(value) for value in row.values() if not isinstance(value, (int, float)))


def pair_length(tokens: Tokens) -> int:
    """Return the tokens of a prompt and the longest answer to it."""
    answers = [len(ids) for column, ids in tokens.items() if column.endswith("_ids") and column != "prompt_ids"]
    return len(tokens["prompt_ids"]) + max(answers)


def pair_lengths(dataset: Dataset) -> np.ndarray:
    """Return `pair_length` of each row; (rows,) int64, without a Python object for any of them."""
    columns = [name for name in dataset.column_names if name.endswith("_ids")]
    arrow, found = dataset.select_columns(columns).with_format("arrow"), []
    for start in range(0, len(dataset), _BATCH):
        table = arrow[start : start + _BATCH]
        lengths = {name: table[name].combine_chunks().value_lengths().to_numpy() for name in columns}
        prompt = lengths.pop("prompt_ids")
        found.append(prompt + np.maximum.reduce(list(lengths.values())))
    return np.concatenate(found).astype(np.int64)


def pack(dataset: Dataset, max_length: int, say: Callable[[str], Any] = str) -> Dataset:
    """Pack documents into rows of at most `max_length` tokens by best fit among a thousand of them.

    `seq_lengths` tells the documents of a row apart, `row` says which row of the recipe each was made from. The result
    lies beside the file of the data set, if it has one, and is made once.
    """
    import datasets
    import pyarrow as pa

    if not dataset.cache_files:
        return datasets.Dataset(pa.concat_tables(_packed(dataset, max_length, say)))
    path = Path(dataset.cache_files[0]["filename"]).with_name(f"packed-{max_length}{_selected(dataset)}.arrow")
    cache.once(path, lambda partial: write_tables(_packed(dataset, max_length, say), partial))
    return datasets.Dataset.from_file(str(path))


def _selected(dataset: Dataset) -> str:
    """Return what tells a selection of examples from another; empty where it is all of them."""
    chosen = dataset._indices
    return f"-{hashlib.sha256(chosen.column(0).to_numpy().tobytes()).hexdigest()[:16]}" if chosen is not None else ""


def _packed(dataset: Dataset, max_length: int, say: Callable[[str], Any]) -> Iterator[pa.Table]:
    """Yield tables of packed rows, each made from a thousand documents."""
    import datasets
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    arrow, progress = dataset.with_format("arrow"), Progress(say)
    for start in range(0, len(dataset), _BATCH):
        progress.tell(lambda: f"packs: {start:,} of {len(dataset):,} pieces of text")  # noqa: B023
        table = arrow[start : start + _BATCH]
        table = table.take(pa.array(np.arange(len(table))))  # a slice keeps the offsets that it has in the whole
        lengths = table["input_ids"].combine_chunks().value_lengths().to_numpy()
        # The number of a document is repeated for each of its tokens, since packing cuts all columns alike.
        spread = _with_rows(table, np.repeat(table["row"].to_numpy(), lengths), lengths)
        packed = pack_dataset(datasets.Dataset(spread), max_length, strategy="bfd").with_format("arrow")[:]
        lengths = packed["seq_lengths"].combine_chunks()
        tokens, numbers = lengths.flatten().to_numpy(), packed["row"].combine_chunks().flatten().to_numpy()
        yield _with_rows(packed, numbers[np.cumsum(tokens) - tokens], lengths.value_lengths().to_numpy())


def numbered(dataset: Dataset) -> Dataset:
    """Return the examples with a number each, so that what is drawn for one depends on nothing else."""
    return dataset.add_column("example", np.arange(len(dataset)))


def _with_rows(table: pa.Table, numbers: np.ndarray, lengths: np.ndarray) -> pa.Table:
    """Return the table with lists of row numbers, of the given lengths, in the column `row`."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers, pa.int32()))
    return table.set_column(table.schema.get_field_index("row"), "row", rows)


@dataclass
class CausalCollator:
    """Batch rows for a causal model.

    Packed rows (with `seq_lengths`) get position ids that begin again with each document and no
    attention mask, which is how transformers keeps documents apart; padding is one more document.
    Other rows get an attention mask. Result: (batch, length) int64 `input_ids`, `labels` (-100 where
    nothing is learned) and `position_ids` or `attention_mask`. With `flat` packed rows become one row, without padding.
    `length`: that packed rows are padded to, where batches must all have the same shape.
    """

    pad_id: int
    flat: bool = False
    length: int = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows of different lengths, padded on the right."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
        packed = "seq_lengths" in rows[0]
        if packed:
            rows, longest = self._shaped(rows, longest)
        extra = batch.setdefault("position_ids" if packed else "attention_mask", [])
        for row in rows:
            padding = longest - len(row["input_ids"])
            batch["input_ids"].append(list(row["input_ids"]) + [self.pad_id] * padding)
            batch["labels"].append(list(row["labels"]) + [IGNORED] * padding)
            if packed:
                extra.append([position for length in [*row["seq_lengths"], padding] for position in range(length)])
            else:
                extra.append([1] * len(row["input_ids"]) + [0] * padding)
        return {key: torch.tensor(values) for key, values in batch.items()}

    def _shaped(self, rows: Sequence[dict[str, Any]], longest: int) -> tuple[Sequence[dict[str, Any]], int]:
        """Return packed rows as they are to be batched, and the length of a row."""
        if not self.flat:
            return rows, max(longest, self.length)
        joined = {key: [value for row in rows for value in row[key]] for key in ("input_ids", "labels", "seq_lengths")}
        return [joined], max(len(joined["input_ids"]), self.length * len(rows))

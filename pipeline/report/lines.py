"""A batch as a reader sees it: its rows token by token, with what of them counts in the loss."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.system.errors import UserError

_RESTORED = ("masked", "discriminator")  # families whose labels are the tokens that were hidden or replaced


@dataclass(frozen=True)
class Token:
    """One token as a reader sees it."""

    text: str
    counts: bool  # in the loss
    special: bool = False
    saw: str = ""  # what the model saw in its position, where that was another token


@dataclass(frozen=True)
class Line:
    """One row of a batch, or one side of a pair."""

    name: str
    tokens: Sequence[Token]
    second: bool = False  # whether it belongs to the line before it
    images: Sequence[str] = ()  # that the model is shown with it, as data URLs

    def runs(self) -> Iterator[tuple[bool, list[Token]]]:
        """Yield stretches of tokens that count, or don't."""
        for counts, run in itertools.groupby(self.tokens, lambda token: token.counts):
            yield counts, list(run)


def split(batch: Mapping[str, Any], family: str, tokenizer: Any) -> list[Line]:
    """Return the rows of a batch, token by token; UserError where it holds no tokens."""
    if "input_ids" not in batch:
        return _columns(batch, tokenizer)
    if "completion_mask" in batch:
        return _completions(batch, tokenizer)
    if "contexts" in batch:
        return _windows(batch, tokenizer)
    if "labels" in batch and family == "seq2seq":
        return _written(batch, tokenizer)
    if "labels" in batch and batch["labels"].shape == batch["input_ids"].shape:
        return _labelled(batch, tokenizer, family in _RESTORED)
    if family == "reward":
        return _scored(batch, tokenizer)
    rows = batch["input_ids"].tolist()  # one answer for a whole row, or none
    return [Line(f"row {number}", _tokens(row, [0] * len(row), tokenizer)) for number, row in enumerate(rows, start=1)]


def illustrated(lines: Sequence[Line], shown: Sequence[Sequence[str]]) -> list[Line]:
    """Return the lines of a batch with the images of each row, or each pair, which stand with its first line."""
    left = iter(shown)
    return [line if line.second else dataclasses.replace(line, images=next(left, ())) for line in lines]


def _completions(batch: Mapping[str, Any], tokenizer: Any) -> list[Line]:
    """Return prompts with what follows them; where the first half of the rows has the prompts of the second, as pairs."""
    ids, masks = batch["input_ids"].tolist(), batch["completion_mask"].tolist()
    half, odd = divmod(len(ids), 2)
    prompts = [row[: mask.index(1)] if 1 in mask else row for row, mask in zip(ids, masks, strict=True)]
    if odd or prompts[:half] != prompts[half:]:
        rows = zip(ids, masks, strict=True)
        return [Line(f"row {number}", _tokens(row, mask, tokenizer)) for number, (row, mask) in enumerate(rows, start=1)]
    return [
        Line(
            f"pair {number + 1}, {name}", _tokens(ids[number + side * half], masks[number + side * half], tokenizer), bool(side)
        )
        for number in range(half)
        for side, name in enumerate(("chosen", "rejected"))
    ]


def _scored(batch: Mapping[str, Any], tokenizer: Any) -> list[Line]:
    """Return both sides of each pair, which get one score each; the first half of the rows are the chosen ones."""
    ids = batch["input_ids"].tolist()
    half = len(ids) // 2
    return [
        Line(f"pair {number + 1}, {name}", _tokens(ids[number + side * half], [0] * len(ids[0]), tokenizer), bool(side))
        for number in range(half)
        for side, name in enumerate(("chosen", "rejected"))
    ]


def _columns(batch: Mapping[str, Any], tokenizer: Any) -> list[Line]:
    """Return the rows of a batch of several columns of ids, such as chosen_input_ids with chosen_labels; of a row, all of them.

    What counts is said by labels or by a completion mask of the same prefix; where a column has neither, nothing does.
    """
    from pipeline.data.batches import IDS, prefixes
    from pipeline.data.tokens import IGNORED

    columns = prefixes(batch)
    if not columns:
        held = ", ".join(batch) if isinstance(batch, Mapping) else "rows from which it samples while it learns"
        raise UserError(f"its batches hold no tokens that could be shown, only {held}")
    lines = []
    for number in range(max(len(batch[f"{prefix}{IDS}"]) for prefix in columns)):
        for prefix in (prefix for prefix in columns if number < len(batch[f"{prefix}{IDS}"])):
            ids = batch[f"{prefix}{IDS}"][number].tolist()
            if f"{prefix}labels" in batch:
                mask = [label != IGNORED for label in batch[f"{prefix}labels"][number].tolist()]
            else:
                mask = (
                    batch[f"{prefix}completion_mask"][number].tolist()
                    if f"{prefix}completion_mask" in batch
                    else [0] * len(ids)
                )
            name = prefix.replace("_", " ").strip()
            lines.append(Line(f"row {number + 1}, {name}", _tokens(ids, mask, tokenizer), second=prefix != columns[0]))
    return lines


def _windows(batch: Mapping[str, Any], tokenizer: Any) -> list[Line]:
    """Return the words around a position, then the one that was there and those drawn beside it."""
    around = [[word for word in row if word >= 0] for row in batch["contexts"].tolist()]
    pairs = zip(around, batch["input_ids"].tolist(), strict=True)
    return [
        Line(f"window {number}", _tokens([*words, *targets], [0] * len(words) + [1] * len(targets), tokenizer))
        for number, (words, targets) in enumerate(pairs, start=1)
    ]


def _written(batch: Mapping[str, Any], tokenizer: Any) -> list[Line]:
    """Return what an encoder reads, then what the decoder writes."""
    from pipeline.data.tokens import IGNORED

    written = [[label for label in row if label != IGNORED] for row in batch["labels"].tolist()]
    lines = []
    for number, (read, wrote) in enumerate(zip(batch["input_ids"].tolist(), written, strict=True), start=1):
        lines.append(Line(f"row {number}, reads", _tokens(read, [0] * len(read), tokenizer)))
        lines.append(Line(f"row {number}, writes", _tokens(wrote, [1] * len(wrote), tokenizer), second=True))
    return lines


def _labelled(batch: Mapping[str, Any], tokenizer: Any, restored: bool) -> list[Line]:
    """Return rows with their targets; where those are restored tokens, also what the model saw in their positions."""
    from pipeline.data.tokens import IGNORED

    ids, labels = batch["input_ids"].tolist(), batch["labels"].tolist()
    pair = batch["pair"].tolist() if "pair" in batch else [None] * len(ids)
    lines = []
    for number, (row, targets, answer) in enumerate(zip(ids, labels, pair, strict=True), start=1):
        mask = [label != IGNORED for label in targets]
        shown = [label if on and restored else token for token, label, on in zip(row, targets, mask, strict=True)]
        name = f"row {number}" if answer is None else f"row {number}, the pair is {'wrong' if answer else 'right'}"
        lines.append(Line(name, _tokens(shown, mask, tokenizer, row)))
    return lines


def _tokens(ids: Sequence[int], mask: Sequence[Any], tokenizer: Any, seen: Sequence[int] | None = None) -> list[Token]:
    """Return tokens with their text; padding at the end becomes one token that says how much."""
    pad = int(tokenizer.pad_token_id)
    length = len(ids)
    while length and ids[length - 1] == pad and not mask[length - 1]:
        length -= 1
    special = set(tokenizer.all_special_ids)
    seen = seen or ids
    found = [
        Token(text, bool(mask[at]), ids[at] in special, "" if seen[at] == ids[at] else tokenizer.decode([seen[at]]))
        for at, text in enumerate(texts(tokenizer, ids[:length], special))
    ]
    padding = [Token(f"{tokenizer.pad_token} × {len(ids) - length}", False, True)] if length < len(ids) else []
    return found + padding


def texts(tokenizer: Any, ids: Sequence[int], special: set[int]) -> list[str]:
    """Return what each token adds to the text; the bytes of one character all show with the token that completes it."""
    found: list[str] = []
    start, before = 0, ""
    for at, number in enumerate(ids):
        if number in special:
            start, before = at + 1, ""
            found.append(str(tokenizer.convert_ids_to_tokens(number)))
            continue
        whole = str(tokenizer.decode(list(ids[start : at + 1])))
        last = at + 1 == len(ids) or ids[at + 1] in special
        if whole.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            found.append("")
        elif whole.startswith(before):
            found.append(whole[len(before) :])
            before = whole
        else:  # a decoder that joins pieces in another way once the next is there
            found.append(str(tokenizer.decode([number])))
            before = whole
    return found

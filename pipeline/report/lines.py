"""A batch as a reader sees it: its rows token by token, with what of them counts in the loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Token:
    """One token as a reader sees it."""

    text: str
    counts: bool  # in the loss
    special: bool = False
    saw: str = ""  # what the model saw in its place, where that was another token


@dataclass(frozen=True)
class Line:
    """One row of a batch, or one side of a pair."""

    name: str
    tokens: Sequence[Token]

    def runs(self) -> Iterator[tuple[bool, list[Token]]]:
        """Yield stretches of tokens that count, or don't."""
        for counts, run in itertools.groupby(self.tokens, lambda token: token.counts):
            yield counts, list(run)


def split(batch: Mapping[str, Any], family: str, vocabulary: Any) -> list[Line]:
    """Return the rows of a batch, token by token."""
    from pipeline.data.tokens import IGNORED

    ids = batch["input_ids"].tolist()
    if "completion_mask" in batch:  # pairs: the first half of the rows is chosen, the second rejected
        masks, half = batch["completion_mask"].tolist(), len(ids) // 2
        order = [(place + side * half, number + 1, name) for number, place in enumerate(range(half))
                 for side, name in enumerate(("chosen", "rejected"))]  # fmt: skip
        return [Line(f"pair {number}, {name}", _tokens(ids[at], masks[at], vocabulary)) for at, number, name in order]
    if "contexts" in batch:
        around = [[word for word in row if word >= 0] for row in batch["contexts"].tolist()]
        return [Line(f"window {number + 1}", _tokens([*words, *asked], [0] * len(words) + [1] * len(asked), vocabulary))
                for number, (words, asked) in enumerate(zip(around, ids, strict=True))]  # fmt: skip
    if "labels" not in batch:
        return [Line(f"row {number + 1}", _tokens(row, [0] * len(row), vocabulary)) for number, row in enumerate(ids)]
    labels = batch["labels"].tolist()
    if family == "seq2seq":
        written = [[label for label in row if label != IGNORED] for row in labels]
        return [line for number, (read, wrote) in enumerate(zip(ids, written, strict=True)) for line in (
            Line(f"row {number + 1}, reads", _tokens(read, [0] * len(read), vocabulary)),
            Line(f"row {number + 1}, writes", _tokens(wrote, [1] * len(wrote), vocabulary)))]  # fmt: skip
    pair = batch["pair"].tolist() if "pair" in batch else [None] * len(ids)
    lines = []
    for number, (row, asked, answer) in enumerate(zip(ids, labels, pair, strict=True)):
        mask = [label != IGNORED for label in asked]
        shown = [label if on else token for token, label, on in zip(row, asked, mask, strict=True)]
        name = f"row {number + 1}" if answer is None else f"row {number + 1}, the pair is {'wrong' if answer else 'right'}"
        lines.append(Line(name, _tokens(shown, mask, vocabulary, row)))
    return lines


def _tokens(ids: Sequence[int], mask: Sequence[Any], vocabulary: Any, seen: Sequence[int] | None = None) -> list[Token]:
    """Return tokens with their text; padding at the end becomes one token that says how much."""
    pad = int(vocabulary.pad_token_id)
    length = len(ids)
    while length and ids[length - 1] == pad and not mask[length - 1]:
        length -= 1
    special = set(vocabulary.all_special_ids)
    seen = seen or ids
    found = [
        Token(text, bool(mask[place]), ids[place] in special, "" if seen[place] == ids[place] else vocabulary.decode([seen[place]]))
        for place, text in enumerate(texts(vocabulary, ids[:length], special))
    ]  # fmt: skip
    padding = [Token(f"{vocabulary.pad_token} × {len(ids) - length}", False, True)] if length < len(ids) else []
    return found + padding


def texts(vocabulary: Any, ids: Sequence[int], special: set[int]) -> list[str]:
    """Return what each token adds to the text; the bytes of one character all show with the token that completes it."""
    found: list[str] = []
    start, before = 0, ""
    for place, number in enumerate(ids):
        if number in special:
            start, before = place + 1, ""
            found.append(str(vocabulary.convert_ids_to_tokens(number)))
            continue
        whole = str(vocabulary.decode(list(ids[start : place + 1])))
        last = place + 1 == len(ids) or ids[place + 1] in special
        if whole.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            found.append("")
        elif whole.startswith(before):
            found.append(whole[len(before) :])
            before = whole
        else:  # a decoder that joins pieces in another way once the next is there
            found.append(str(vocabulary.decode([number])))
            before = whole
    return found

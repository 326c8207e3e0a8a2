"""Cloze on held-out sentences: one letter or word is hidden in each, and a masked model says which it was.

The rival says the most frequent one of the training text every time, and is as sure of it as that is frequent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.shapes import Row
from pipeline.system.hardware import device
from pipeline.objectives import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST = 8  # tokens of a sentence that says something about one of them
_SENTENCES = 2000  # at most, spread over all
_BATCH = 32
_GUESSES = 3  # that are shown of a sample
_SHOWN = 40  # tokens of a sample, at most
_CHINESE = "[\u3000-\u9fff\uff00-\uffef]"


@dataclass(frozen=True)
class Question:
    """A sentence as ids between the tokens that begin and end a text, the place that is hidden, and what stood there."""

    ids: list[int]
    place: int
    answer: int


def questions(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, language: str, longest: int, seed: int
) -> list[Question]:
    """Return one question for each sentence; which place is hidden depends on the seed and the sentence's number."""
    asked = word_starts(tokenizer)
    found = []
    for number, ids in enumerate(_sentences(rows, tokenizer, language)):
        ids = ids[: longest - 2]
        places = np.flatnonzero(asked[ids])
        if len(ids) >= _SHORTEST and len(places):
            place = int(np.random.default_rng([seed, number]).choice(places))
            hidden = [*ids[:place], int(tokenizer.mask_token_id), *ids[place + 1 :]]
            found.append(
                Question([int(tokenizer.cls_token_id), *hidden, int(tokenizer.sep_token_id)], place + 1, int(ids[place]))
            )
    return found[:: max(1, -(-len(found) // _SENTENCES))]


def _sentences(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, language: str) -> Iterator[list[int]]:
    from sentencex import segment

    for row in rows:
        for sentence in segment(language, row["text"]):
            yield list(tokenizer.encode(sentence, add_special_tokens=False))


def word_starts(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return which ids are letters and begin a word: neither marks of punctuation nor rests of words; (vocabulary,) bool."""
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([token.lstrip("▁Ġ").isalpha() and number not in special for number, token in enumerate(tokens)])


def figures(
    folder: Path, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], training: Sequence[Row], shown: int
) -> tuple[dict[str, Scores], list[dict[str, Any]]]:
    """Return `cloze` (share right) and `cloze_loss` (nats) of the model and of the unigram, and a few questions with answers."""
    rival = _frequencies(tokenizer, training)
    said = list(_answers(folder, asked, int(tokenizer.pad_token_id)))
    found: dict[str, Scores] = {}
    for name, nats in (("pretrain", said), ("unigram", [rival] * len(asked))):
        right = [float(each.argmin() == question.answer) for each, question in zip(nats, asked, strict=True)]
        losses = [float(each[question.answer]) for each, question in zip(nats, asked, strict=True)]
        found[name] = {"cloze": (right, [1.0] * len(asked)), "cloze_loss": (losses, [1.0] * len(asked))}
    short = [place for place, question in enumerate(asked) if len(question.ids) <= _SHOWN]
    return found, [
        {
            "prompt": f"{_shown(str(tokenizer.decode(asked[place].ids[1:-1])))} ({tokenizer.decode([asked[place].answer])})",
            "answers": {"pretrain": _guesses(said[place], tokenizer), "unigram": tokenizer.decode([int(rival.argmin())])},
        }
        for place in short[:: max(1, -(-len(short) // shown))]
    ]


def _frequencies(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> np.ndarray:
    """Return -log p of what may be hidden, by its frequency, one added to each count; infinite for all else."""
    asked = word_starts(tokenizer)
    counts = np.ones(len(tokenizer))
    for row in rows:
        counts += np.bincount(tokenizer.encode(row["text"], add_special_tokens=False), minlength=len(counts))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(counts[asked].sum()) - np.log(np.where(asked, counts, 0)))


def _answers(folder: Path, asked: Sequence[Question], pad_id: int) -> Iterator[np.ndarray]:
    """Yield -log p of every token at the hidden place; (vocabulary,) in nats."""
    import torch

    from pipeline.objectives._batches import pad
    from pipeline.models.build import load

    model: Any = load("AutoModelForMaskedLM", str(folder)).to(device()).eval()
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        batch = {key: value.to(device()) for key, value in pad([{"input_ids": each.ids} for each in part], pad_id).items()}
        with torch.no_grad():
            logits = model(**batch).logits[torch.arange(len(part)), [each.place for each in part]].float()
        yield from (-logits.log_softmax(-1)).cpu().numpy()


def _shown(sentence: str) -> str:
    """Return a sentence without the spaces that decoding puts beside Chinese characters."""
    return re.sub(f" (?={_CHINESE})|(?<={_CHINESE}) ", "", sentence)


def _guesses(nats: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the likeliest tokens with their probabilities."""
    likeliest = nats.argsort()[:_GUESSES]
    return ", ".join(f"{tokenizer.decode([int(token)])} {100 * np.exp(-nats[token]):.0f}%" for token in likeliest)

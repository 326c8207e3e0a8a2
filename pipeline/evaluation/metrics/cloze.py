"""Cloze on held-out sentences: one letter or word is hidden in each, and a masked model says which it was.

The unigram baseline always says the most frequent one of the training text, with its frequency as the probability.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.batches import pad
from pipeline.data.tokens import text_ids
from pipeline.data.types import Row
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import StageModel, Subject
from pipeline.models import build
from pipeline.system.hardware import device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST = 8  # tokens of a sentence that says something about one of them
_SENTENCES = 2000  # at most, spread over all
_BATCH = 32
_LIKELIEST = 3  # predictions that are shown of a sample
_SHOWN = 40  # tokens of a sample, at most
_CHINESE = "[\u3000-\u9fff\uff00-\uffef]"


@dataclass(frozen=True)
class Gap:
    """A sentence as ids between the tokens that begin and end a text, the position that is hidden, and what stood there."""

    ids: list[int]
    position: int
    answer: int


class Cloze(Evaluator):
    """Measures how well a masked model fills gaps in sentences."""

    reads, gives = "text", ("masked",)
    metrics = (
        Metric("cloze", "share of held-out sentences in which the hidden word or letter is predicted right", "share", "more"),
        Metric("cloze_loss", "mean −log p of the hidden word or letter, in nats", "nats", "less"),
    )

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield both figures of the models and of the unigram; keep a few sentences with what is predicted."""
        config, tokenizer = subject.record["config"], subject.node.tokenizer
        longest = int(config.get("max_length") or min(subject.node.positions, 512))
        found = gaps(subject.rows, tokenizer, str(config.get("language", "en")), longest, subject.seed)
        if not found:
            if subject.rows:
                subject.skipped["cloze: no held-out sentence is long enough"] += 1
            return
        unigram = frequencies(tokenizer, subject.training())
        nats = {model.label: list(predicted(model, found)) for model in subject.compared if _comparable(model, subject)}
        for label, each in (nats | {"unigram": [unigram] * len(found)}).items():
            yield from measured(label, each, found)
        subject.samples += samples(
            found, {subject.node.label: nats[subject.node.label]}, unigram, tokenizer, subject.settings.samples
        )


def _comparable(model: StageModel, subject: Subject) -> bool:
    return model.family == "masked" and model.tokenizer.get_vocab() == subject.node.tokenizer.get_vocab()


def gaps(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, language: str, longest: int, seed: int) -> list[Gap]:
    """Return one gap for each sentence; which position is hidden depends on the seed and the sentence's number."""
    whole = word_starts(tokenizer)
    found = []
    for number, ids in enumerate(_sentences(rows, tokenizer, language)):
        ids = ids[: longest - 2]
        positions = np.flatnonzero(whole[ids])
        if len(ids) >= _SHORTEST and len(positions):
            position = int(np.random.default_rng([seed, number]).choice(positions))
            hidden = [*ids[:position], int(tokenizer.mask_token_id), *ids[position + 1 :]]
            found.append(
                Gap([int(tokenizer.cls_token_id), *hidden, int(tokenizer.sep_token_id)], position + 1, int(ids[position]))
            )
    return found[:: max(1, -(-len(found) // _SENTENCES))]


def _sentences(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, language: str) -> Iterator[list[int]]:
    from sentencex import segment

    for row in rows:
        for sentence in segment(language, row["text"]):
            yield text_ids([sentence], tokenizer)[0]


def word_starts(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return which ids are letters and begin a word: neither punctuation nor inner pieces of words; (vocabulary,) bool."""
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([token.lstrip("▁Ġ").isalpha() and number not in special for number, token in enumerate(tokens)])


def frequencies(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> np.ndarray:
    """Return −log p of what may be hidden, by its frequency, one added to each count; infinite for all else."""
    whole = word_starts(tokenizer)
    counts = np.ones(len(tokenizer))
    for row in rows:
        counts += np.bincount(text_ids([row["text"]], tokenizer)[0], minlength=len(counts))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(counts[whole].sum()) - np.log(np.where(whole, counts, 0)))


def predicted(model: StageModel, found: Sequence[Gap]) -> Iterator[np.ndarray]:
    """Yield −log p of every token in each gap; (vocabulary,) in nats."""
    import torch

    pad_id = int(model.tokenizer.pad_token_id)
    masked: Any = build.load("AutoModelForMaskedLM", model.where).to(device()).eval()
    for start in range(0, len(found), _BATCH):
        part = found[start : start + _BATCH]
        batch = {key: value.to(device()) for key, value in pad([{"input_ids": each.ids} for each in part], pad_id).items()}
        with torch.no_grad():
            logits = masked(**batch).logits[torch.arange(len(part)), [each.position for each in part]].float()
        yield from (-logits.log_softmax(-1)).cpu().numpy()


def measured(label: str, nats: Sequence[np.ndarray], found: Sequence[Gap]) -> Iterator[Measurement]:
    """Yield the share that is right and the loss."""
    right = [float(each.argmin() == gap.answer) for each, gap in zip(nats, found, strict=True)]
    yield Measurement(label, "cloze", share(right))
    yield Measurement(label, "cloze_loss", share([float(each[gap.answer]) for each, gap in zip(nats, found, strict=True)]))


def samples(
    found: Sequence[Gap], nats: Mapping[str, Sequence[np.ndarray]], unigram: np.ndarray, tokenizer: PreTrainedTokenizerBase,
    count: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return a few short sentences with the likeliest predictions of models for their gaps, and the unigram's."""
    short = [number for number, gap in enumerate(found) if len(gap.ids) <= _SHOWN]
    always = tokenizer.decode([int(unigram.argmin())])
    return [
        {
            "prompt": f"{_shown(str(tokenizer.decode(found[number].ids[1:-1])))} ({tokenizer.decode([found[number].answer])})",
            "answers": {label: _likeliest(each[number], tokenizer) for label, each in nats.items()} | {"unigram": always},
        }
        for number in short[:: max(1, -(-len(short) // count))]
    ]


def _shown(sentence: str) -> str:
    """Return a sentence without the spaces that decoding puts beside Chinese characters."""
    return re.sub(f" (?={_CHINESE})|(?<={_CHINESE}) ", "", sentence)


def _likeliest(nats: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the likeliest tokens with their probabilities."""
    tokens = nats.argsort()[:_LIKELIEST]
    return ", ".join(f"{tokenizer.decode([int(token)])} {100 * np.exp(-nats[token]):.0f}%" for token in tokens)


EVALUATOR = Cloze()

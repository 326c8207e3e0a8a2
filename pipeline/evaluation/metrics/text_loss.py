"""The loss of held-out text, one document a row, beside what counting reaches and, where a judge knows it, the exact floor."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline.data.tokens import IGNORED, Tokens, document_ids, encode_text, pieces
from pipeline.evaluation.inference import num_targets
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.ngram import KneserNey, spread
from pipeline.evaluation.subject import StageModel, Subject

_UNIGRAM_ROWS = 5000  # of the training text, for the unigram's counts
_ORDER, _MOST = 5, 4_000_000  # of the n-gram model; training tokens that it counts at most, which bounds its memory
_TOGETHER = 1000  # rows that are tokenised at once
_PROBED = 200  # rows whose length says how many rows hold that many tokens
NGRAM = "5-gram"
_LONGEST = 1024  # tokens of a piece, where the model's configuration sets no bound

Document = list[Tokens]  # a text cut in pieces that fit the model


class TextLoss(Evaluator):
    """Measures how well a causal model predicts text that it was not trained on."""

    reads, gives = "text", ("causal",)
    metrics = (
        Metric("loss", "mean −log p of a token of held-out text, in nats", "nats", "less"),
        Metric("bits_per_byte", "−log₂ p of held-out text for each of its bytes, whatever the tokenizer", "bits", "less"),
        Metric("floor", "−log p of a token under what generated the text: no model can have a lower loss", "nats", "", True),
        Metric("loss_over_floor", "the loss divided by its exact floor; 1 would be perfect", "ratio", "less"),
    )

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield loss and bits per byte of the models, of a unigram and a 5-gram, and the floor."""
        rows, node = subject.rows, subject.node
        if not rows:
            return
        texts = [str(row["text"]) for row in rows]
        sizes = [float(len(text.encode())) for text in texts]
        documents = documents_of(node, texts)
        tokens = [float(sum(num_targets(document))) for document in documents]
        own = nats_of(node, documents)
        yield Measurement(node.label, "loss", share(own, tokens))
        yield Measurement(node.label, "bits_per_byte", share(_bits(own), sizes))
        for model in subject.compared[1:]:
            theirs = documents_of(model, texts) if model.family == "causal" else []
            if theirs:
                nats = nats_of(model, theirs)
                if model.tokenizer.get_vocab() == node.tokenizer.get_vocab():  # else a token is not the same thing
                    yield Measurement(model.label, "loss", share(nats, tokens))
                yield Measurement(model.label, "bits_per_byte", share(_bits(nats), sizes))
        frequent = _unigram(subject, documents)
        yield Measurement("unigram", "loss", share(frequent, tokens))
        yield Measurement("unigram", "bits_per_byte", share(_bits(frequent), sizes))
        counted = _counted(subject, texts)
        yield Measurement(NGRAM, "loss", share(counted, tokens))
        yield Measurement(NGRAM, "bits_per_byte", share(_bits(counted), sizes))
        floors = [subject.judge.floor(text) for text in texts] if subject.judge else [None]
        known = [floor for floor in floors if floor is not None]
        if len(known) == len(texts):
            yield Measurement(node.label, "floor", share(known, tokens))
            yield Measurement(node.label, "loss_over_floor", share(own, known))


def documents_of(model: StageModel, texts: Sequence[str]) -> list[Document]:
    """Return texts as a causal model reads them, cut in pieces that fit it."""
    length = _LONGEST if math.isinf(model.positions) else int(model.positions)
    return [
        list(pieces([{"text": text}], lambda row: encode_text(row, model.tokenizer), length, True, Counter())) for text in texts
    ]


def nats_of(model: StageModel, documents: Sequence[Document]) -> list[float]:
    """Return −Σ log p of each document's tokens, in nats."""
    found = iter(model.nats([piece for document in documents for piece in document]))
    return [sum(next(found) for _ in document) for document in documents]


def _bits(nats: Sequence[float]) -> list[float]:
    return [value / math.log(2) for value in nats]


def _unigram(subject: Subject, documents: Sequence[Document]) -> list[float]:
    """Return −Σ log p of documents under token frequencies of the training text, one added to each count."""
    tokenizer = subject.node.tokenizer
    counts: Counter[int] = Counter()
    for ids in document_ids([str(row["text"]) for row in subject.training()[:_UNIGRAM_ROWS]], tokenizer):
        counts.update(ids[1:])
    total = math.log(sum(counts.values()) + len(tokenizer))
    return [
        sum(total - math.log(counts[label] + 1) for piece in document for label in piece["labels"] if label != IGNORED)
        for document in documents
    ]


def _counted(subject: Subject, texts: Sequence[str]) -> list[float]:
    """Return −Σ log p of texts under an n-gram model of the training text, or of rows spread over it where it is long."""
    started = time.monotonic()
    tokenizer, rows = subject.node.tokenizer, subject.training()

    def read(numbers: Iterable[int]) -> list[np.ndarray]:
        documents: list[np.ndarray] = []
        numbers = list(numbers)
        for start in range(0, len(numbers), _TOGETHER):
            given = [str(rows[number]["text"]) for number in numbers[start : start + _TOGETHER]]
            documents += [np.asarray(ids, dtype=np.int32) for ids in document_ids(given, tokenizer)]
        return documents

    probed = read(spread(len(rows), _PROBED))
    wanted = int(_MOST * len(probed) / max(1, sum(map(len, probed))))
    model = KneserNey(read(spread(len(rows), wanted)), len(tokenizer), _ORDER)
    part = "" if wanted >= len(rows) else ", a sample"
    taken = time.monotonic() - started
    subject.add_model(NGRAM, "baseline", f"counted over {model.tokens:,} tokens of the training text{part}", round(taken, 1))
    return [float(model.nats(ids).sum()) for ids in document_ids(texts, tokenizer)]


EVALUATOR = TextLoss()

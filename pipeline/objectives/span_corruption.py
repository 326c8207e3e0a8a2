"""Span corruption (T5, Raffel et al. 2020, section 3.1.4 and figure 2).

Spans of 3 tokens on average, 15% of the text, are each replaced by a sentinel. The target lists each sentinel with
the tokens that it replaced, and a last sentinel ends it. The loss is -Σ log p(target token | the corrupted text, the
target tokens before it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.models.build import build, load
from pipeline.models.logits import decoder_logits, num_targets, token_nats, token_scores
from pipeline.models.tokenization import sentinels
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.objectives._documents import pieces, spans
from pipeline.system.config import option


@dataclass(frozen=True)
class SpanCorruption(Objective):
    """Predict the spans that were taken out."""

    family = "seq2seq"
    note = "The model reads the corrupted text and writes what is missing; only what it writes counts."
    accepts: ClassVar[tuple[str, ...]] = ("seq2seq",)
    architectures: ClassVar[tuple[str, ...]] = ("t5",)
    tokenizer_type = "characters"

    noise_share: float = option(0.15, "share of the tokens that are taken out", at_least=0.01, at_most=0.9)
    mean_span: float = option(3.0, "tokens of a span, on average", at_least=1)

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return an encoder and decoder."""
        start = tokenizer.pad_token_id
        return build(
            "AutoModelForSeq2SeqLM", architecture, tokenizer, sizes, decoder_start_token_id=start, tie_word_embeddings=True
        )

    def load_model(self, parent: str) -> Any:
        """Return an encoder and decoder."""
        return load("AutoModelForSeq2SeqLM", parent)

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield pieces of documents; from a single token nothing could be taken out."""
        for piece in pieces(text, text.max_length - 1):
            if len(piece.ids) > 1:
                yield {"input_ids": piece.ids, "row": piece.row}
            else:
                text.truncated["piece of one token"] += 1

    def corrupt(self, example: Example, tokenizer: Any, rng: np.random.Generator) -> Example:
        """Return the text with sentinels in place of spans, and the spans as labels."""
        ids = list(example["input_ids"])
        taken = spans(len(ids), self.noise_share, self.mean_span, rng)
        marks = sentinels(tokenizer)
        taken = taken[: len(marks) - 1]
        source: list[int] = []
        target: list[int] = []
        last = 0
        for mark, (start, end) in zip(marks, taken, strict=False):
            source += [*ids[last:start], mark]
            target += [mark, *ids[start:end]]
            last = end
        end_of_text = tokenizer.eos_token_id
        source += [*ids[last:], end_of_text]
        return example | {"input_ids": source, "labels": [*target, marks[len(taken)], end_of_text]}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of target tokens."""
        return {"loss": num_targets(batch["labels"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(target token)."""
        return {"loss": token_nats(decoder_logits(model, batch), batch["labels"], "sum")}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the nats of each row."""
        return {"loss": token_scores(decoder_logits(model, batch), batch["labels"])}


OBJECTIVE = SpanCorruption

"""Denoising (BART, Lewis et al. 2020, section 2.2): text infilling and sentence permutation.

Sentences are shuffled, then spans whose lengths are drawn from a Poisson distribution (λ = 3), 30% of the text, are
each replaced by one mask token; a span of length 0 inserts a mask. The model writes the whole original text. The
loss is -Σ log p(token | the noisy text, the tokens before it).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.models.build import build
from pipeline.objectives import Example, Text
from pipeline.objectives._documents import sentences
from pipeline.objectives.span_corruption import SpanCorruption
from pipeline.system.config import option


@dataclass(frozen=True)
class Denoising(SpanCorruption):
    """Restore a text whose sentences were shuffled and whose spans were masked."""

    architectures: ClassVar[tuple[str, ...]] = ("bart",)
    note = "The model reads the noisy text and writes the original one; only what it writes counts."
    tokenizer_type = "begun_characters"

    noise_share: float = option(0.3, "share of the tokens that are taken out", at_least=0.01, at_most=0.9)
    mean_span: float = option(3.0, "tokens of a span, on average (λ)", at_least=0.5)
    permute: bool = option(True, "shuffle the sentences")

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return an encoder and decoder."""
        start = tokenizer.eos_token_id
        return build(
            "AutoModelForSeq2SeqLM", architecture, tokenizer, sizes, decoder_start_token_id=start, forced_eos_token_id=None
        )

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield as many whole sentences of a document as fit, with the end of each; longer sentences are cut."""
        room = text.max_length - 2
        for number, row in enumerate(text.rows):
            parts = [body[start : start + room] for body in sentences(text, row["text"]) for start in range(0, len(body), room)]
            if not parts:
                text.dropped["no token"] += 1
            held: list[list[int]] = []
            for part in [*parts, None]:
                if held and (part is None or sum(map(len, held)) + len(part) > room):
                    yield {
                        "input_ids": functools.reduce(operator.iadd, held, []),
                        "ends": np.cumsum([len(each) for each in held]).tolist(),
                        "row": number,
                    }
                    held = []
                held += [part] if part else []

    def corrupt(self, example: Example, tokenizer: Any, rng: np.random.Generator) -> Example:
        """Return the noisy text and, as labels, the original one, both between begin and end tokens."""
        ids = np.array(example["input_ids"])
        parts = np.split(ids, example["ends"][:-1])
        order = rng.permutation(len(parts)) if self.permute else range(len(parts))
        noisy = self._infilled(np.concatenate([parts[index] for index in order]), tokenizer.mask_token_id, rng)
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        kept = {key: value for key, value in example.items() if key != "ends"}
        return kept | {"input_ids": [begin, *noisy, end], "labels": [begin, *ids.tolist(), end]}

    def _infilled(self, ids: np.ndarray, mask: int, rng: np.random.Generator) -> list[int]:
        """Return the text with spans replaced by masks, which never touch."""
        budget = round(self.noise_share * len(ids))
        lengths: list[int] = []
        while budget > 0:
            length = min(int(rng.poisson(self.mean_span)), budget)
            lengths.append(length if sum(lengths) > len(lengths) else max(length, 1))  # masks never make the text longer
            budget -= max(lengths[-1], 1)  # a span of length 0 counts as one, so that this ends
        gaps = np.sort(rng.choice(len(ids) - sum(lengths) + 1, min(len(lengths), len(ids) - sum(lengths) + 1), replace=False))
        noisy: list[int] = []
        read = kept = 0
        for gap, length in zip(gaps, lengths, strict=False):
            noisy += [*ids[read : read + gap - kept].tolist(), mask]
            read, kept = read + int(gap) - kept + length, int(gap)
        return [*noisy, *ids[read:].tolist()]


OBJECTIVE = Denoising

"""Masked language modelling (BERT, Devlin et al. 2019, section 3.1; masks drawn anew each epoch as in RoBERTa).

15% of the tokens are chosen; of these 80% become the mask token, 10% a random token, and 10% stay. The loss is
-Σ log p(token | the corrupted text) over the chosen ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from pipeline.data.tokens import IGNORED
from pipeline.models.build import build, load
from pipeline.models.logits import at, num_targets, summed, token_scores
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.objectives._documents import pieces
from pipeline.objectives._rivals import BIGRAMS, Bigrams
from pipeline.system.config import option
from pipeline.system.errors import UserError


@dataclass(frozen=True)
class MaskedLanguageModel(Objective):
    """Predict hidden tokens from the text on both sides of them."""

    family = "masked"
    note = "The model predicts the marked tokens; before each stands what it saw at that position, where that differs."
    accepts: ClassVar[tuple[str, ...]] = ("masked", "embedder")
    architectures: ClassVar[tuple[str, ...]] = ("bert", "modernbert", "electra", "roberta", "albert")

    mask_share: float = option(0.15, "share of the tokens that are chosen", at_least=0.01, at_most=0.9)
    whole_words: bool = option(False, "choose whole words, not pieces of them")

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return an encoder with a head over the vocabulary."""
        return build("AutoModelForMaskedLM", architecture, tokenizer, sizes)

    def load_model(self, parent: str) -> Any:
        """Return an encoder; a parent without a head gets one with random weights."""
        return load("AutoModelForMaskedLM", parent)

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield pieces of documents between begin and end tokens."""
        self.check(text.tokenizer)
        first, last = text.tokenizer.cls_token_id, text.tokenizer.sep_token_id
        for piece in pieces(text, text.max_length - 2):
            yield {"input_ids": [first, *piece.ids, last], "row": piece.row}

    def check(self, tokenizer: Any) -> None:
        """Raise UserError where whole words are wanted of a vocabulary that does not tell them."""
        if self.whole_words:
            continues(tokenizer)

    def corrupt(self, example: Example, tokenizer: Any, rng: np.random.Generator) -> Example:
        """Return the text with its chosen tokens hidden, and labels at their positions."""
        ids = np.array(example["input_ids"])
        chosen = choose(ids, tokenizer, self.mask_share, self.whole_words, rng)
        fate = rng.random(len(ids))
        hidden = ids.copy()
        hidden[chosen & (fate < 0.8)] = tokenizer.mask_token_id
        random = chosen & (fate >= 0.9)
        hidden[random] = rng.choice(ordinary(tokenizer), int(random.sum()))
        return example | {"input_ids": hidden.tolist(), "labels": np.where(chosen, ids, IGNORED).tolist()}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of hidden tokens."""
        return {"loss": num_targets(batch["labels"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(hidden token)."""
        chosen = batch["labels"] != IGNORED
        with at(model, chosen):
            return {"loss": summed(_logits(model, batch), batch["labels"][chosen])}

    def scorable_targets(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave out targets that were chosen and stayed as they are: copying them is enough."""
        return {**batch, "labels": batch["labels"].masked_fill(batch["input_ids"] == batch["labels"], IGNORED)}

    def rivals(self, known: Sequence[Example], size: int) -> dict[str, Callable[[Mapping[str, Any]], Scores]]:
        """Return the bigrams of a hidden token's neighbours."""
        bigrams = Bigrams(known, size)
        return {BIGRAMS: lambda batch: {self.metrics[0].name: bigrams.scores(batch)}}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the nats of each row."""
        return {"loss": token_scores(_logits(model, batch), batch["labels"])}


def _logits(model: Any, batch: Mapping[str, Any]) -> Any:
    return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


def choose(ids: np.ndarray, tokenizer: Any, share: float, whole_words: bool, rng: np.random.Generator) -> np.ndarray:
    """Return which tokens are chosen, (length,) bool: `share` of those that are text, at least one."""
    text = ~np.isin(ids, tokenizer.all_special_ids)
    if whole_words:
        begins = text & ~continues(tokenizer)[ids]
        word = np.cumsum(begins)  # 0 before the first word
        units = np.unique(word[text])
        wanted, taken, picked = max(1, round(share * text.sum())), 0, []
        for unit in rng.permutation(units):
            if taken >= wanted:
                break
            picked.append(unit)
            taken += int((word[text] == unit).sum())
        return text & np.isin(word, picked)
    positions = np.flatnonzero(text)
    chosen = np.zeros(len(ids), bool)
    chosen[rng.choice(positions, max(1, round(share * len(positions))), replace=False) if len(positions) else positions] = True
    return chosen


@cache
def continues(tokenizer: Any) -> np.ndarray:
    """Return which ids continue a word, (vocabulary,) bool; UserError where a vocabulary does not tell."""
    found = np.array([token.startswith("##") for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))])
    if not found.any():
        raise UserError(
            "whole_words: the tokenizer has no WordPiece vocabulary, whose ## marks pieces within words; leave it out, or start "
            "without a parent"
        )
    return found


@cache
def ordinary(tokenizer: Any) -> np.ndarray:
    """Return the ids that are not special tokens."""
    return np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)


OBJECTIVE = MaskedLanguageModel

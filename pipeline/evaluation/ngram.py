"""N-gram models with interpolated, modified Kneser-Ney smoothing (Chen & Goodman 1999, section 4.1.6), counted with numpy.

Of a token w after a context h, with counts c of all n-grams of an order and discounts D₁, D₂, D₃₊ from the counts of counts:

    p(w|h) = (c(hw) − D(c(hw))) / Σ_v c(hv) + γ(h) p(w|h'),   γ(h) = Σ_i D_i N_i(h) / Σ_v c(hv)

where h' is h without its first token. Below the highest order c is the number of different tokens that stand before the
n-gram; one that begins a document, before which nothing stands, keeps its own count. Below the unigram all tokens are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Ids = np.ndarray  # of whole numbers
Documents = Sequence[Sequence[int]] | Sequence[np.ndarray]
_ABSENT = -1  # the number of an n-gram that was never counted


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order: each is known by the number of its first n − 1 tokens and its last one."""

    keys: Ids  # sorted: number of the context times the vocabulary, plus the token; its place is the n-gram's number
    discounted: np.ndarray  # (n-grams,) the first term of p
    backoff: np.ndarray  # (contexts,) γ; 1 where a context was never counted

    def find(self, keys: Ids) -> Ids:
        """Return the numbers of n-grams; −1 of those that were never counted."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, _ABSENT)


class KneserNey:
    """An n-gram model of tokens, counted once.

    Its documents are sequences of ids from 0 to below `vocabulary`, the first one of each being given and not predicted.
    """

    def __init__(self, documents: Documents, vocabulary: int, order: int = 5) -> None:
        """Count n-grams up to `order` in documents; at least two tokens in all."""
        self.vocabulary, self.order = vocabulary, order
        tokens, depth = _joined(documents)
        self.tokens = int((depth > 0).sum())  # predicted ones, of which the counts are
        numbers: list[Ids] = []  # of the n-gram of each order that ends at a token
        keys: list[Ids] = []
        counts: list[Ids] = []
        contexts = np.zeros_like(tokens)  # of the order that is counted: the number of the n − 1 tokens before a token
        for length in range(1, order + 1):
            # Unigrams count the first tokens of documents, too: as contexts; they are never predicted.
            whole = depth >= length - 1
            packed = np.where(whole, contexts * vocabulary + tokens, _ABSENT)
            found, inverse = np.unique(packed[whole], return_inverse=True)
            number = np.full(len(tokens), _ABSENT)
            number[whole] = inverse
            predicted = whole & (depth > 0)
            numbers.append(number)
            keys.append(found)
            counts.append(np.bincount(number[predicted], minlength=len(found)))
            contexts = np.concatenate([[0], number[:-1]])
        starts = [np.unique(number[(number >= 0) & (depth == length)]) for length, number in enumerate(numbers)]
        self._orders = [self._smoothed(length, keys, numbers, counts, starts) for length in range(order)]

    def _smoothed(
        self, length: int, keys: Sequence[Ids], numbers: Sequence[Ids], counts: Sequence[Ids], starts: Sequence[Ids]
    ) -> _Order:
        """Return an order (0 is the unigrams') with its counts discounted."""
        own = counts[length]
        if length + 1 < self.order:  # how many different tokens stand before it
            longer, shorter = numbers[length + 1], numbers[length]
            suffix = np.zeros(len(keys[length + 1]), dtype=np.int64)
            there = longer >= 0
            suffix[longer[there]] = shorter[there]
            before = np.bincount(suffix, minlength=len(own))
            begins = np.zeros(len(own), dtype=bool)
            begins[starts[length]] = True
            own = np.where(begins, np.maximum(own, before), before) if length else np.where(own > 0, np.maximum(before, 1), 0)
        discounts = _discounts(own)
        context = keys[length] // self.vocabulary
        size = len(keys[length - 1]) if length else 1
        total = np.bincount(context, own, minlength=size)
        less = discounts[np.minimum(own, 3)]
        share = np.bincount(context, less, minlength=size)
        seen = total > 0
        backoff = np.where(seen, share / np.where(seen, total, 1), 1.0)
        discounted = np.where(own > 0, (own - less) / np.where(seen, total, 1)[context], 0.0)
        return _Order(keys[length], discounted, backoff)

    def nats(self, document: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return −log p of each token of a document but the first; (tokens − 1,), in nats."""
        tokens = np.asarray(document, dtype=np.int64)
        chance = np.full(len(tokens), 1.0 / self.vocabulary)
        contexts = np.zeros(len(tokens), dtype=np.int64)
        for model in self._orders:
            known = contexts >= 0
            number = np.where(known, model.find(contexts * self.vocabulary + tokens), _ABSENT)
            first = np.where(number >= 0, model.discounted[number], 0.0)
            backoff = np.where(known, model.backoff[contexts], 1.0)
            chance = first + backoff * chance
            contexts = np.concatenate([[_ABSENT], number[:-1]])
        return np.asarray(-np.log(chance[1:]))


def _joined(documents: Documents) -> tuple[Ids, Ids]:
    """Return all tokens in one row, and how many of its own document stand before each."""
    sizes = np.array([len(document) for document in documents])
    tokens = np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])
    begins = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return tokens, np.arange(len(tokens)) - begins


def _discounts(counts: Ids) -> np.ndarray:
    """Return what is taken from counts of 0, 1, 2, 3 and more, by the counts of counts; (4,).

    Where there are too few n-grams to tell, all discounts are 0.75 at most.
    """
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.5, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    found = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0, *(min(max(value, 0.05), count - 0.05) for value, count in zip(found, (1, 2, 3), strict=True))])


def spread(total: int, wanted: int) -> Iterator[int]:
    """Yield numbers of rows spread evenly over all of `total`, about `wanted` of them."""
    yield from range(0, total, max(1, -(-total // max(1, wanted))))

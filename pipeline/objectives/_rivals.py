"""What counting says of hidden tokens and of pairs of segments: baselines that read no more than neighbours and lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.tokens import IGNORED
from pipeline.objectives import Example, Scores

BIGRAMS, LENGTHS = "neighbours' bigrams", "lengths"
_MOST = 4_000_000  # tokens that are counted
_CELLS = 20_000_000  # probabilities that are held in memory at once


class Bigrams:
    """A hidden token by its two neighbours: p(x | l, r) ∝ p(x | l) p(x | r) / p(x), as if they did not know of each other.

    Each factor is a bigram with the weight of its context by Witten and Bell (1991): (c(l, x) + T(l) p(x)) / (c(l) + T(l)),
    where T(l) is the number of different tokens after l. A neighbour that is hidden too was never counted, so its factor is p(x).
    """

    def __init__(self, examples: Iterable[Example], size: int) -> None:
        """Count the tokens of examples; `size`: of the vocabulary."""
        read: list[np.ndarray] = []
        total = 0
        for example in examples:
            read.append(np.array(example["input_ids"], dtype=np.int64))
            total += len(read[-1])
            if total >= _MOST:
                break
        counts = np.bincount(np.concatenate(read), minlength=size) + 1.0
        self.size, self.log = size, np.log(counts / counts.sum())
        before, after = (np.concatenate([ids[part] for ids in read]) for part in (slice(None, -1), slice(1, None)))
        self._sides = [_Pairs(before, after, size), _Pairs(after, before, size)]

    def scores(self, batch: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        """Return −Σ log p of each row's targets, and their number."""
        ids, labels = batch["input_ids"].cpu().numpy(), batch["labels"].cpu().numpy()
        rows, places = np.nonzero(labels != IGNORED)
        nats = np.zeros(len(rows))
        step = max(1, _CELLS // self.size)
        for part in (slice(start, start + step) for start in range(0, len(rows), step)):
            row, place = rows[part], places[part]
            found = -np.tile(self.log, (len(row), 1))
            for side, pairs in zip((-1, 1), self._sides, strict=True):
                near = place + side
                context = np.where((near >= 0) & (near < ids.shape[1]), ids[row, np.clip(near, 0, ids.shape[1] - 1)], -1)
                for one in np.unique(context):
                    found[context == one] += pairs.log(int(one), self.log)
            most = found.max(1, keepdims=True)
            whole = most[:, 0] + np.log(np.exp(found - most).sum(1))
            nats[part] = whole - found[np.arange(len(row)), labels[row, place]]
        return np.bincount(rows, nats, len(ids)).tolist(), (labels != IGNORED).sum(1).astype(float).tolist()


class _Pairs:
    """Which tokens stand beside which, and how often."""

    def __init__(self, context: np.ndarray, token: np.ndarray, size: int) -> None:
        codes, self.counts = np.unique(context * size + token, return_counts=True)
        self.tokens = codes % size
        self.starts = np.searchsorted(codes, np.arange(size + 1) * size)

    def log(self, context: int, frequent: np.ndarray) -> np.ndarray:
        """Return log p of every token beside a context, (vocabulary,); that of its frequency where the context is unknown."""
        start, end = self.starts[context : context + 2] if context >= 0 else (0, 0)
        if start == end:
            return frequent
        found = (end - start) * np.exp(frequent)
        found[self.tokens[start:end]] += self.counts[start:end]
        return np.asarray(np.log(found / (self.counts[start:end].sum() + end - start)))


class Lengths:
    """The label of a pair by the lengths of its segments: the best threshold on their difference or their sum."""

    def __init__(self, examples: Sequence[Example]) -> None:
        """Choose feature, threshold and side by training examples."""
        labels = np.array([example["pair"] for example in examples])
        features = np.array([_features(np.array(example["token_type_ids"])) for example in examples]).T
        best = -1.0
        for number, values in enumerate(features):
            order = np.argsort(values, kind="stable")
            cut = np.flatnonzero(np.diff(values[order], append=np.inf))  # the last example of each value
            above = labels.sum() - np.cumsum(labels[order])[cut]  # ones beyond it
            right = (cut + 1 - (labels.sum() - above) + above) / len(labels)
            for side, shares in ((1, right), (0, 1 - right)):
                if (most := float(shares.max())) > best:
                    best, self._rule = most, (number, float(values[order][cut[int(shares.argmax())]]), side)

    def scores(self, batch: Mapping[str, Any]) -> Scores:
        """Return whether each pair is classified correctly."""
        number, threshold, side = self._rule
        kinds = batch["token_type_ids"].cpu().numpy()
        there = batch["attention_mask"].cpu().numpy().astype(bool)
        found = np.array([_features(one[mask])[number] for one, mask in zip(kinds, there, strict=True)])
        said = (found > threshold) == bool(side)
        right = (said == batch["pair"].cpu().numpy().astype(bool)).astype(float).tolist()
        return {"pair_accuracy": (right, [1.0] * len(right))}


def _features(kinds: np.ndarray) -> tuple[int, int]:
    """Return by how many tokens the first segment is longer than the second, and how many both have."""
    second = int(kinds.sum()) - 1
    return len(kinds) - 3 - 2 * second, len(kinds) - 3

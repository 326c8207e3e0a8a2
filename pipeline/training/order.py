"""The random order of training rows, without a Python object for each of them.

torch and accelerate turn the whole permutation into a list: 40 bytes a row, which is 300 MB for a gigabyte of text in rows
of 64 tokens. Here it stays a tensor of 8 bytes a row, and the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler

_AT_ONCE = 10_000  # numbers that are made Python's


class Permuted(torch.utils.data.Sampler[int]):
    """A random order by seed and epoch, as accelerate's `SeedableRandomSampler` gives it."""

    def __init__(self, rows: int, seed: int, epoch: int = 0) -> None:
        self.rows, self.seed, self.epoch = rows, seed, epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for part in torch.randperm(self.rows, generator=generator).split(_AT_ONCE):
            yield from part.tolist()
        self.epoch += 1

    def set_epoch(self, epoch: int) -> None:
        """Go on with an epoch, as accelerate's data loader says."""
        self.epoch = epoch


def permuted(loader: Any) -> Any:
    """Return a data loader of accelerate's whose order, where it is random, is the same in less memory."""
    sampler: Any = loader.get_sampler() if hasattr(loader, "get_sampler") else None
    if type(sampler) is SeedableRandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        loader.set_sampler(Permuted(len(sampler), sampler.initial_seed, sampler.epoch))
    return loader

"""Negatives of all processes: the vectors of every process's batch, with their gradients, so that N processes see what one does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_apart = False  # whether each process has the same rows at the moment, which are no negatives of each other


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Let each process know its own rows alone, as where all of them measure the loss of the same rows."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def gathered(found: Any, fill: int = 0) -> tuple[Any, int]:
    """Return the rows of all processes, in the order of their ranks, and where those of this one begin.

    `found`: (rows, any), of as many rows in each process; the wider rows of others are met by padding with `fill`. The
    gradient of each row is the sum over all processes.
    """
    import torch
    from torch import distributed

    if _apart or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return found, 0
    from accelerate.utils import pad_across_processes
    from torch.distributed.nn.functional import all_gather

    found = pad_across_processes(found, dim=1, pad_index=fill)
    return torch.cat(all_gather(found.contiguous())), distributed.get_rank() * len(found)

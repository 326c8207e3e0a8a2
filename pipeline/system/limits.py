"""How much memory a block may take, so that what somebody else wrote ends in an error and not in a machine that swaps."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

_STATUS = Path("/proc/self/statm")


@contextlib.contextmanager
def memory(more: int) -> Iterator[None]:
    """Let the block raise MemoryError where it takes so many bytes more than the process has; no limit where the system has none."""
    if not _STATUS.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(_STATUS.read_text().split()[0]) * resource.getpagesize() + more
    if soft != resource.RLIM_INFINITY and soft < limit:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

"""Work on all cores: items in, results out in the same order, in forked processes that end with this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Any, TypeVar

from pipeline.system.errors import WorldError

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 2  # results a core that wait for those before them: so many are in memory at once

_work: Callable[[Any], Any]  # in a worker: what it does to each item


def count() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yield `work(item)` of each item, in order, and raise what it raises.

    With several cores and items the work is done in forks of this process: they have what `work` refers to without a copy,
    and what they change in it is lost. A single item, or a single core, needs no fork.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    if len(first) < 2 or count() == 1:
        yield from map(work, chain(first, rest))
        return
    pool = ProcessPoolExecutor(count(), multiprocessing.get_context("fork"), begin, (work,))
    try:
        waiting: deque[Future[Result]] = deque()
        with unbroken():
            for item in chain(first, rest):
                waiting.append(pool.submit(_done, item))
                if len(waiting) >= _AHEAD * count():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Raise WorldError where the system killed a worker whose results are asked for inside."""
    try:
        yield
    except BrokenExecutor:
        raise WorldError(
            f"one of the {count()} processes that work on the rows was killed, most likely because the memory ran out; "
            "the same command goes on where it was, and `taskset -c 0` before it lets one process do all"
        ) from None


def begin(work: Callable[[Any], Any] | None = None) -> None:
    """Begin as a worker: leave signals to the process that started it, and end with that, however it ends."""
    global _work
    if work:
        _work = work
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
        os._exit(1)


def _done(item: Any) -> Any:
    return _work(item)

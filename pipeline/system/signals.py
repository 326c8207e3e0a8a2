"""SIGTERM and Ctrl-C: while a trainer is at work they wait for the step's end, everywhere else they end the process.

The trainer asks at the end of each optimizer step whether a signal came, saves a checkpoint and stops. A
checkpoint in the middle of an accumulation would resume to other weights.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from pipeline.system.errors import Stopped, UserError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE = 3.0  # seconds that a library's own loop, in which Python runs no handler, may take to come back


class _State:
    pending = 0  # the signal that came while the trainer was at work
    training = False
    answering = False
    interrupted = 0  # times that Ctrl-C ended an answer
    text = ""


def pending_signal() -> int:
    """Return the signal that came since the trainer began, or 0."""
    return _State.pending


@contextlib.contextmanager
def at_step_ends() -> Iterator[None]:
    """Let signals wait for the trainer, which looks for them at the end of each optimizer step."""
    _State.training, _State.pending = True, 0
    try:
        yield
    finally:
        _State.training = False


@contextlib.contextmanager
def within(seconds: float, text: str) -> Iterator[None]:
    """Raise UserError(text) where the block takes longer; only Python code is cut short, and only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(signum: int, frame: FrameType | None) -> None:
        raise UserError(text)

    started, handler = time.monotonic(), signal.signal(signal.SIGALRM, late)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's alarm
            signal.setitimer(signal.ITIMER_REAL, max(0.01, left - (time.monotonic() - started)))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, for the caller to catch and go on."""
    _State.answering = True
    try:
        yield
    finally:
        _State.answering = False


@contextlib.contextmanager
def handled(text: str) -> Iterator[None]:
    """Take SIGTERM and Ctrl-C over for this process; `text` is the line that a stop leaves."""
    _State.text, _State.pending = text, 0
    before = {signum: signal.signal(signum, _handle) for signum in _SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    over = threading.Event()
    threading.Thread(target=_watch, args=(reader, os.getpid(), over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(-1)
        os.close(writer)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _handle(signum: int, _: FrameType | None) -> None:
    if _State.answering and signum == signal.SIGINT:
        _State.interrupted += 1
        raise KeyboardInterrupt
    if _State.training and not _State.pending:
        _State.pending = signum
    else:  # nothing to save, or asked for a second time
        raise Stopped(signum, _State.text)


def _watch(pipe: int, owner: int, over: threading.Event) -> None:
    """End the process where a handler does not get its turn, as in the training of a tokenizer."""
    known = _State.interrupted
    while received := os.read(pipe, 1):
        if received[0] not in _SIGNALS or _State.training or os.getpid() != owner:
            continue
        if over.wait(_GRACE):
            break
        if known < _State.interrupted:
            known = _State.interrupted
            continue
        print(_State.text, file=sys.stderr, flush=True)
        os._exit(128 + received[0])
    os.close(pipe)

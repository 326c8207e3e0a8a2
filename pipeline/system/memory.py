"""What this process holds of the host's memory beside files that are mapped into it, watched while it works."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time

import psutil

_EVERY = 0.002  # seconds


def held() -> int:
    """Return the bytes that this process holds now; pages of files, such as libraries, are shared and not among them."""
    told = psutil.Process().memory_info()
    return int(told.rss) - int(getattr(told, "shared", 0))


def give_back() -> None:
    """Let the C library give the system what was freed, where it is one that can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Peak(threading.Thread):
    """The most that this process held since it was last asked to forget it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = held()

    def run(self) -> None:
        """Look every two milliseconds."""
        while True:
            self.most = max(self.most, held())
            time.sleep(_EVERY)

    def forget(self) -> None:
        """Give back what was freed, and begin anew."""
        give_back()
        self.most = held()

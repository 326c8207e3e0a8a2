"""One process at a time in a stage directory, on one machine or on a file system that several share."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import tempfile
from pathlib import Path

from pipeline.system.errors import UserError


class Lock:
    """The right to write into a folder; the system takes it back when the process dies, however it dies.

    The file lies beside the folder, since the folder itself may be moved aside. `lockf` and not `flock`:
    a data worker would inherit the latter and hold it after its parent's death. A second file among the machine's temporary
    ones holds where somebody removes the first.
    """

    def __init__(self, folder: Path, path: Path | None = None) -> None:
        """`path`: of the lock's file, where it is not the one beside the folder."""
        real = folder.resolve()  # two names of one folder have one lock
        self.folder, self.path = folder, path or real.parent / f".{real.name}.lock"
        name = hashlib.sha256(str(real).encode()).hexdigest()[:32]
        self._second = None if path else Lock(folder, Path(tempfile.gettempdir()) / f"tristage-{os.getuid()}" / f"{name}.lock")
        self._file = -1

    def take(self) -> None:
        """Take the lock; UserError naming the process that has it, or the folder that can't be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._taken():
                os.close(self._file)  # another process has just let go and removed the file: look again
        except BlockingIOError:
            holder = self._holder()
            raise UserError(f"--output {self.folder}: {holder} is at work there; wait for it or stop it") from None
        except OSError as error:
            raise UserError(f"--output {self.folder}: can't be written ({error.strerror}: {error.filename})") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        if self._second:
            try:
                self._second.take()
            except UserError as error:
                if isinstance(error.__context__, BlockingIOError):  # else there is no room for temporary files
                    self.release()
                    raise

    def release(self) -> None:
        """Let go."""
        if self._second:
            self._second.release()
        if self._file >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1

    def _taken(self) -> bool:
        """Open and lock the file; say whether it is still the one that the path names."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            self._file = -1
            raise
        try:
            return os.stat(self.path).st_ino == os.fstat(self._file).st_ino
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {found['pid']} on {found['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it is just writing who it is
            return "another process"

"""Stages and commands in processes of their own that need not import the libraries: they fork from one that has.

What such a process is sent, and how it ends, is real; only that its imports are done distinguishes it from a script that
somebody starts. That scripts start is tested by `command` of tests/conftest.py and by tests/test_make.py.
"""

import functools
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

from tests.conftest import last, status_of


@functools.cache
def _context():
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.libraries"])
    return made


class Forked:
    """A process that runs a stage's script or a command; it offers what the tests use of subprocess.Popen.

    `limit`: (kind of resource, its limit). `terminal`: a pseudo terminal in place of input and output.
    """

    def __init__(self, name, flags, folder, *, terminal=None, group=False, limit=None, **variables):
        self.out, self.err = (Path(folder) / f"{name}-{time.monotonic_ns()}.{kind}" for kind in ("out", "err"))
        environment = dict(os.environ) | variables
        given = (name, list(map(str, flags)), str(self.out), str(self.err), terminal, group, limit, environment, os.getcwd())
        self.process = _context().Process(target=_run, args=given)
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def send_signal(self, signum):
        os.kill(self.pid, signum)

    def wait(self, timeout=120):
        self.process.join(timeout)
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {timeout} s: {self.out.read_text()}{self.err.read_text()}")
        return self.returncode

    def communicate(self, timeout=120):
        """Wait for its end; return what it printed and what it complained about."""
        self.wait(timeout)
        return self.out.read_text() if self.out.exists() else "", self.err.read_text()

    @property
    def returncode(self):
        return self.process.exitcode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
        self.process.join()


def launched(name, flags, folder, processes=2):
    """Run a script in several processes, as torchrun would start them; return what the first one printed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    started = [Forked(name, flags, folder, RANK=str(n), LOCAL_RANK=str(n), **shared) for n in range(processes)]
    said = [one.communicate() for one in started]
    assert [one.returncode for one in started] == [0] * processes, said
    return said[0][0]


def _run(name, flags, out, err, terminal, group, limit, environment, folder):
    """Become the script, in the child."""
    if group:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    ours = os.open(terminal, os.O_RDWR) if terminal else os.open(out, os.O_WRONLY | os.O_CREAT)
    os.dup2(ours, 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(ours if terminal else os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # fmt: skip  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if limit:
        import resource

        resource.setrlimit(limit[0], (limit[1], limit[1]))
    sys.argv = [name, *last(flags)]
    sys.exit(status_of(name))

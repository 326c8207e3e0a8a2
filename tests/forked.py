"""Stages and commands in processes of their own that need not import the libraries: they fork from one that has.

What such a process is sent, and how it ends, is real; only that its imports are done distinguishes it from a script that
somebody starts. That scripts start is tested by `command` of tests/conftest.py and by tests/test_make.py.
"""

import functools
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from pipeline import ROOT
from tests.checkout import environment
from tests.conftest import last, status_of


@functools.cache
def _context():
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.libraries"])
    return made


class Forked:
    """A process that runs a stage's script or a command; it offers what the tests use of subprocess.Popen.

    `limit`: (kind of resource, its limit). `terminal`: a pseudo terminal in place of input and output. `checkout`: where the
    code lies that runs, `name` being a command, the path of a script there, or `-c` before a program's text.
    """

    def __init__(self, name, flags, folder, *, terminal=None, group=False, limit=None, checkout=None, **variables):
        self.out, self.err = (Path(folder) / f"{Path(name).stem}-{time.monotonic_ns()}.{kind}" for kind in ("out", "err"))
        environment = dict(os.environ) | variables
        words = [str(name), *map(str, flags)]
        given = (words, str(self.out), str(self.err), terminal, group, limit, checkout and str(checkout), environment)
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


def start(checkout, *words, **variables):
    """Start a command of a checkout's code, or one of its stages by the script's path, in a process group of its own."""
    return Forked(words[0], words[1:], tempfile.mkdtemp(), group=True, checkout=checkout, **environment(checkout, **variables))


def call(checkout, *words, **variables):
    """Run such a command to its end; return (status, what it printed, what it complained about)."""
    with start(checkout, *words, **variables) as process:
        out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def _run(words, out, err, terminal, group, limit, checkout, environment):
    """Become the script, in the child."""
    default = multiprocessing.get_all_start_methods()[0]
    multiprocessing.set_start_method(default, force=True)  # of data workers, as in a script that somebody starts
    if group:
        os.setsid()
    os.chdir(checkout or ROOT)
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
    if checkout:
        _of(checkout, words)
        sys.exit(0)  # a script says its status by itself
    sys.argv = [words[0], *last(words[1:])]
    sys.exit(status_of(words[0]))


def _of(checkout, words):
    """Run a checkout's code in place of ours, which the child knows already."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "stages", "data_recipes")]:
        del sys.modules[name]
    sys.path.insert(0, checkout)
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "-c", "exec"), {"__name__": "__main__"})
    elif words[0].endswith(".py"):
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.argv = ["pipeline.commands", *words]
        runpy.run_module("pipeline.commands", run_name="__main__", alter_sys=True)

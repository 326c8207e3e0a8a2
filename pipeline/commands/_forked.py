"""A stage run in a fork of this process, which has the libraries loaded.

CUDA can't be used in a fork once the process that it came from has begun to use it, and asking torch whether there is a device
begins it. So this process asks nothing of a device: a child of its own does, and libraries ask the driver's monitoring.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.chain.profile import Node
from pipeline.system import config

_MONITORED = "PYTORCH_NVML_BASED_CUDA_CHECK"  # torch then counts devices without the driver


def forked(
    node: Node,
    argv: list[str],
    printed: Path,
    before: Callable[[], Any] = lambda: None,
    after: Callable[[], Any] = lambda: None,
) -> int:
    """Run a node's stage in a child and return its status. `before` and `after`: what the child does around it."""
    from pipeline.chain.life import run_stage

    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException), printed.open("wb", buffering=0) as out:
            for descriptor in (1, 2):
                os.dup2(out.fileno(), descriptor)
            sys.stdout, sys.stderr, sys.argv = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1), argv
            before()
            status = run_stage(type(node.stage))
            after()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    _, code = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(code)


def load_libraries(names: Iterable[str | None], *modules: str) -> None:
    """Import what the stages of these libraries' classes need before the first fork, without waking a device."""
    os.environ[_MONITORED] = "1"
    for module in modules:
        importlib.import_module(module)
    for name in filter(None, names):
        config.library_class(name)


def answered(question: Callable[[], Any]) -> Any:
    """Return what a child of this process answers, a JSON value; RuntimeError where it can't."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), os.fdopen(writes, "w") as out:
            json.dump(question(), out)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as found:
        text = found.read()
    os.waitpid(child, 0)
    if not text:
        raise RuntimeError("a child that was asked about the machine ended without an answer")
    return json.loads(text)

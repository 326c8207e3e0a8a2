"""A stage run in a fork of this process, which has the libraries loaded."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.chain.profile import Node


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

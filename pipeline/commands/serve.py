"""Serve a finished model behind an OpenAI-compatible server, on this machine alone unless --host says otherwise.

    python -m pipeline.commands.serve --runs runs/tiny [--node NAME] [--host 127.0.0.1] [--port 8000]

Without --node the released node is served. vLLM serves where there is an accelerator and it is installed; everywhere else
transformers generates, one answer at a time, behind the routes of `_serve`. Both read the node's folder as it lies there,
with its template and its generation settings.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import Any

from pipeline.chain import finished
from pipeline.system import config, process
from pipeline.system.errors import Stopped, UserError
from pipeline.system.process import say

MAKE = {"runs": "OUT", "node": "STAGE"}
MODULES = ("fastapi", "uvicorn", "openai")  # what transformers' server needs beside transformers


def engine() -> str:
    """Return what serves here: vllm or transformers; UserError where neither can."""
    import torch

    if torch.cuda.is_available() and importlib.util.find_spec("vllm"):
        return "vllm"
    if missing := [name for name in MODULES if not importlib.util.find_spec(name)]:
        raise UserError(f"not installed here, but needed to serve: {', '.join(missing)}; make setup installs them")
    return "transformers"


def serve(engine: str, folder: Path, host: str, port: int) -> None:
    """Serve a folder until a signal comes; UserError where the port is taken, before the model is loaded."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}  # nothing is loaded from elsewhere
    if engine == "vllm":
        command = ["vllm", "serve", str(folder), "--host", host, "--port", str(port)]
        os.execvp(command[0], command)
    else:
        _here(folder, host, port)


def _here(folder: Path, host: str, port: int) -> None:
    """Serve in this process."""
    with _listening(host, port) as listener:
        import uvicorn

        from pipeline.commands._serve.answers import Model
        from pipeline.commands._serve.app import build

        model = Model(str(folder), str(folder))
        say("serve", f"transformers at http://{host}:{port}/v1, model {folder}; Ctrl-C ends it")
        server = uvicorn.Server(uvicorn.Config(build(model), log_level="error", timeout_graceful_shutdown=2))
        server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that is bound; UserError where it can't be."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        why = "something else listens there; give another --port" if error.errno == errno.EADDRINUSE else error.strerror
        raise UserError(f"--host {host} --port {port}: {why}") from None
    return listener


def main() -> int:
    """Check the flags, say where it is served, serve."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    given: dict[str, Any] = {"runs": "runs/tiny", "node": "", "host": "127.0.0.1", "port": 8000}
    flags, faults = config.only(tuple(given), sys.argv[1:])
    given |= flags
    if not isinstance(given["port"], int) or not 0 < given["port"] < 65536:
        faults.append(f"command line: --port: expected a number from 1 to 65535, found {given['port']!r}")
    if faults:
        raise UserError(*faults)
    folder = finished.answering(Path(str(given["runs"])), str(given["node"])).folder
    host, chosen = str(given["host"]), engine()
    if host not in ("127.0.0.1", "localhost", "::1"):
        say("serve", f"--host {host}: whoever reaches this machine can ask; the server has no password")
    try:
        serve(chosen, folder, host, given["port"])
    except Stopped as stop:
        if stop.status != 130:
            raise
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

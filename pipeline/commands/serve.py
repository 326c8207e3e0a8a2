"""Serve a finished model behind an OpenAI-compatible server, on this machine alone unless --host says otherwise.

    python -m pipeline.commands.serve --runs runs/tiny [--node NAME] [--host 127.0.0.1] [--port 8000]

Without --node the released node is served. vLLM serves where there is an accelerator and it is installed, transformers' own
server everywhere else; both read the node's folder as it lies there, with its template and its generation settings.
"""

from __future__ import annotations

import importlib.util
import os
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
    """Serve a folder until a signal comes."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}  # nothing is loaded from elsewhere
    if engine == "vllm":
        command = ["vllm", "serve", str(folder), "--host", host, "--port", str(port)]
        os.execvp(command[0], command)
    from huggingface_hub import constants
    from transformers.cli.serve import Serve

    from pipeline.system.hardware import device

    Path(constants.HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)  # /v1/models looks there, and fails without it
    Serve(str(folder), host=host, port=port, device=device(), log_level="error")


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
    say("serve", f"{chosen} at http://{host}:{given['port']}/v1, model {folder}; Ctrl-C ends it")
    try:
        serve(chosen, folder, host, given["port"])
    except Stopped as stop:
        if stop.status != 130:
            raise
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

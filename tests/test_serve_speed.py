"""Time to the first token and tokens a second of the server beside bare `transformers serve` on the same model, in turns."""

import concurrent.futures
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from pipeline import ROOT
from tests.test_chat import QUESTION

pytestmark = pytest.mark.measured
TURNS, TOKENS = 5, 30


@pytest.fixture(scope="module")
def servers(voices, tmp_path_factory):
    """Both servers on the same folder: name → address."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "OMP_NUM_THREADS": "1",
    }
    (tmp_path_factory.getbasetemp() / "home0" / "hub").mkdir(exist_ok=True)
    bare = shutil.which("transformers") or str(ROOT / ".venv" / "bin" / "transformers")
    commands = {
        "ours": [sys.executable, "-m", "pipeline.commands.serve", "--runs", str(voices), "--port"],
        "bare": [
            bare,
            "serve",
            str(voices / "dpo"),
            "--device",
            "cpu",
            "--log-level",
            "error",
            "--host",
            "127.0.0.1",
            "--port",
        ],
    }
    started, found = [], {}
    for name, command in commands.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([*command, str(port)], env=environment, **quiet))
        found[name] = f"http://127.0.0.1:{port}"
    for address in found.values():
        end = time.time() + 120
        while time.time() < end:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
    yield found
    for process in started:
        process.terminate()
        process.wait()


def _asked(address, model):
    """Return seconds to the first piece of an answer, and its letters."""
    import openai

    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    start, first, letters = time.perf_counter(), 0.0, 0
    for chunk in client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=TOKENS, stream=True
    ):
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter() - start
            letters += len(chunk.choices[0].delta.content)
    return first, letters


@pytest.mark.parametrize("clients", [1, 8])
def test_as_fast_as_the_bare_server(servers, voices, clients, capsys):
    model = str(voices / "dpo")
    for address in servers.values():
        _asked(address, model)
    firsts, rates = {name: [] for name in servers}, {name: [] for name in servers}
    for _ in range(TURNS):
        for name, address in servers.items():
            start = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(clients) as pool:
                made = list(pool.map(lambda _, address=address: _asked(address, model), range(4 * clients)))
            rates[name].append(sum(letters for _, letters in made) / (time.perf_counter() - start))
            firsts[name].append(statistics.median(first for first, _ in made))
    rate = statistics.median(ours / bare for ours, bare in zip(rates["ours"], rates["bare"], strict=True))
    first = statistics.median(bare / ours for ours, bare in zip(firsts["ours"], firsts["bare"], strict=True))
    with capsys.disabled():
        print(
            f"\n{clients} clients: {rate:.2f} times the letters a second of transformers serve, first piece {first:.2f} times as soon"
        )
    assert rate >= 0.95
    assert first >= 0.95

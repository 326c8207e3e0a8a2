"""A node behind transformers' server, asked by the official openai client."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from pipeline import ROOT
from pipeline.commands import serve
from tests.test_chat import QUESTION, answers


@pytest.fixture(scope="module")
def server(voices, tmp_path_factory):
    """A server of the released node: (its address, its model's name)."""
    for name in serve.MODULES:
        pytest.importorskip(name, reason=f"{name} is not installed: make setup")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    home = tmp_path_factory.mktemp("home")  # whose hub cache is not there yet
    command = [sys.executable, "-m", "pipeline.commands.serve", "--runs", voices, "--port", str(port)]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    address, end = f"http://127.0.0.1:{port}", time.time() + 90
    while time.time() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1)
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    assert process.poll() is None, process.stderr.read().decode()
    yield f"{address}/v1", str(voices / "dpo")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert f"transformers at {address}/v1, model {voices / 'dpo'}" in process.stdout.read().decode()


def test_the_openai_client_gets_the_nodes_greedy_answer(server, voices):
    import openai

    client = openai.OpenAI(base_url=server[0], api_key="none", max_retries=0)
    asked = {"model": server[1], "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    wanted = answers(voices / "dpo", ("user", QUESTION), length=12)
    assert wanted
    assert client.chat.completions.create(**asked).choices[0].message.content == wanted
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(pieces) == wanted
    assert len(pieces) > 3
    assert client.models.list().object == "list"
    with pytest.raises(openai.NotFoundError):  # no other model is loaded from anywhere
        client.chat.completions.create(**asked | {"model": "someone/model"})


def test_what_can_not_be_served_is_one_plain_line(run, voices, monkeypatch):
    for flags, said in (
        (["--node", "none"], "not finished; finished are pretrain, sft, dpo"),
        (["--port", "high"], "--port: expected a number from 1 to 65535, found 'high'"),
        (["--prot", "1"], "--prot: unknown flag"),
    ):
        status, _, err = run("serve", "--runs", voices, *flags)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, err = run("serve", "--runs", voices, "--port", str(taken.getsockname()[1]))
    assert (status, err.count("\n")) == (2, 1)
    assert "something else listens there; give another --port" in err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = run("serve", "--runs", voices)
    assert status == 2
    assert "needed to serve: fastapi, uvicorn, openai; make setup installs them" in err


def test_vllm_serves_where_it_can(voices, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: name)
    assert serve.engine() == "vllm"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # and given back after the test
    called = []
    monkeypatch.setattr(serve.os, "execvp", lambda file, words: called.append(words) or pytest.skip.Exception)
    serve.serve("vllm", voices / "dpo", "127.0.0.1", 8000)
    assert called == [["vllm", "serve", str(voices / "dpo"), "--host", "127.0.0.1", "--port", "8000"]]

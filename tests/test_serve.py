"""What can not be served, and which engine serves where; what a server answers is in test_serve_openai.py."""

import socket

import pytest

from pipeline.commands import serve


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

"""Talking to a node: by a pipe, by a terminal, node by node and side by side."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from pipeline import ROOT
from pipeline.chain import manifest
from pipeline.commands import chat
from pipeline.system import hashes, process
from tests.forked import Forked

QUESTION = "Who saw the cat?"


@pytest.fixture
def copy(voices, tmp_path):
    """These nodes in a folder of the test's own."""
    return shutil.copytree(voices, tmp_path / "chain")


@pytest.fixture
def talk(voices, monkeypatch, capfd):
    """Give lines to a chat in this process; return its status and what it printed."""

    def call(*lines, node="", runs=voices):
        given = iter(lines)

        def ask(prompt):
            print(prompt, end="")
            try:
                return next(given)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr(sys, "argv", ["chat.py", "--runs", str(runs), *(["--node", node] if node else [])])
        monkeypatch.setattr(chat, "_LONGEST", 4)
        status = process.execute(chat.main)
        out, err = capfd.readouterr()
        return status, out, err

    return call


def answers(folder, *conversation, length=4):
    """Return what a node says by transformers alone, with the settings that lie in its folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    turns = [{"role": role, "content": text} for role, text in conversation]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**ids, max_new_tokens=length)
    return tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_it_answers_as_the_node_does_and_remembers(voices, talk):
    status, out, err = talk(QUESTION, "And the dog?")
    assert (status, err) == (0, "")
    first = answers(voices / "dpo", ("user", QUESTION))
    second = answers(voices / "dpo", ("user", QUESTION), ("assistant", first.strip()), ("user", "And the dog?"))
    assert out.split("> ")[1:3] == [f"{first}\n", f"{second}\n"]
    assert answers(voices / "dpo", ("user", "And the dog?")) != second != first


def test_reset_and_system_begin_anew(voices, talk):
    _, out, _ = talk(QUESTION, "/reset", QUESTION, "/system Be kind.", QUESTION)
    shown = out.split("> ")
    assert shown[1] == shown[3] != ""
    assert shown[5] != shown[1]
    assert shown[5] == answers(voices / "dpo", ("system", "Be kind."), ("user", QUESTION)) + "\n"


def test_nodes_answer_side_by_side(voices, talk):
    status, out, _ = talk(QUESTION, node="all")
    assert status == 0
    for name in ("sft", "dpo"):
        assert f"{name:<8} {answers(voices / name, ('user', QUESTION))}" in out
    assert "\n> pretrain " in out  # by its child's template, it has none of its own
    _, again, _ = talk("/all", QUESTION)
    assert again.split("> ")[2] == out.split("> ")[1]
    _, switched, _ = talk("/node sft", QUESTION)
    assert switched.split("> ")[2] == answers(voices / "sft", ("user", QUESTION)) + "\n"


def test_what_was_said_is_kept_where_the_node_changes(voices, talk):
    _, out, _ = talk(QUESTION, "/node sft", "And the dog?")
    first = answers(voices / "dpo", ("user", QUESTION)).strip()
    assert "sft; 1 answers are remembered" in out
    assert (
        out.split("> ")[3] == answers(voices / "sft", ("user", QUESTION), ("assistant", first), ("user", "And the dog?")) + "\n"
    )


def test_settings_are_set(voices, talk):
    lines = ["/set temperature 2", "/set seed 3", QUESTION, "/reset", QUESTION, "/reset", "/set seed 4", QUESTION, "/reset"]
    _, out, _ = talk(*lines, "/set temperature 0", QUESTION)
    shown = out.split("> ")
    assert "temperature 2.0, top_p (of the node)" in shown[1]
    assert shown[3] == shown[5] != shown[8]
    assert shown[11] == answers(voices / "dpo", ("user", QUESTION)) + "\n"
    _, out, _ = talk("/set warmth 3", "/set top_p 2", "/set seed", "/help")
    assert "/set warmth: no such setting; there are temperature, top_p" in out
    assert "/set top_p 2: expected a number above 0 and at most 1" in out
    assert "/set seed: expected a number at least 0" in out
    assert out.count(chat.HELP) == 2
    status, out, _ = talk(f"/set seed {2**64}", f"/set seed {2**64 - 1}", "/set temperature 1", QUESTION)
    assert status == 0
    assert f"/set seed {2**64}: expected a number at least 0 and below 2 to the power of 64" in out


def test_no_template_is_borrowed_from_the_child_of_a_namesake(voices, copy, talk):
    shutil.rmtree(copy / "dpo")
    record = manifest.read(copy / "sft")
    elsewhere = [entry | {"path": str(voices / "pretrain"), "beside": False} for entry in record["parents"]]
    manifest.write_json(copy / "sft" / manifest.NAME, record | {"parents": elsewhere})
    status, _, err = talk(QUESTION, node="pretrain", runs=copy)
    assert status == 2
    assert "has no chat template" in err


def test_settings_come_from_the_node(copy, talk):
    path = copy / "dpo" / "generation_config.json"
    _, before, _ = talk(QUESTION, runs=copy)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 5.0, "min_new_tokens": 4}))
    _, _, err = talk(QUESTION, runs=copy)
    assert "generation_config.json is not the file that was made" in err
    record = manifest.read(copy / "dpo")
    manifest.write_json(copy / "dpo" / manifest.NAME, record | {"files": hashes.files(copy / "dpo")})
    _, out, _ = talk(QUESTION, runs=copy)
    assert out.split("> ")[1] == answers(copy / "dpo", ("user", QUESTION)) + "\n"
    assert out != before


def test_what_can_not_be_done_is_said_and_the_chat_goes_on(copy, talk):
    shutil.rmtree(copy / "pretrain")
    status, out, err = talk("/node nothing", "/node pretrain", "/dance", "word " * 200, QUESTION, runs=copy)
    assert (status, err) == (0, "")
    assert "nothing: not finished; finished are sft, dpo" in out
    assert "/dance: no such command" in out
    assert "longer than the 64 tokens it can read; /reset" in out
    assert out.split("> ")[5] == answers(copy / "dpo", ("user", QUESTION)) + "\n"


def test_a_node_that_can_not_talk_is_refused(copy, talk):
    shutil.rmtree(copy / "sft")
    status, out, err = talk(QUESTION, node="pretrain", runs=copy)
    assert (status, out) == (2, "")
    assert err == f"chat: {copy / 'pretrain'}: has no chat template; only a chat model can be talked to\n"
    record = manifest.read(copy / "dpo") | {"family": "masked"}
    manifest.write_json(copy / "dpo" / manifest.NAME, record)
    _, _, err = talk(QUESTION, node="dpo", runs=copy)
    assert "a model of family masked gives no answers" in err


def test_no_answer_moves_the_cursor(capfd):
    from pipeline.models import tokenization

    tokenizer = tokenization.train(["abc"], 262, 64)
    streamer = chat._stream(tokenizer)
    streamer.next_tokens_are_prompt = False
    streamer.put(torch.tensor(tokenizer.encode("a\x1b[2J\x07 ")))
    assert capfd.readouterr().out == "a[2J "  # as soon as a word is whole
    streamer.put(torch.tensor(tokenizer.encode("\rb\n中")))
    streamer.end()
    assert capfd.readouterr().out == "b\n中\n"


def test_a_pipe_is_read_to_its_end(voices):
    command = [sys.executable, "-m", "pipeline.commands.chat", "--runs", voices]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=f"{QUESTION}\n/reset\n".encode() + b"\xff\n",  # the last is no UTF-8
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"dpo of ")
    for line in (QUESTION, "\ufffd"):
        assert answers(voices / "dpo", ("user", line)) in done.stdout.decode()


@pytest.mark.parametrize("how", ["Ctrl-D", "Ctrl-C"])
def test_a_terminal_ends_it_well(voices, how, tmp_path):
    ours, theirs = pty.openpty()
    process = Forked("chat", ["--runs", voices], tmp_path, terminal=os.ttyname(theirs))
    shown, end = b"", time.time() + 60
    while b"> " not in shown and time.time() < end:
        shown += os.read(ours, 1000)
    assert b"/reset" in shown
    if how == "Ctrl-D":
        os.write(ours, b"\x04")
    else:
        time.sleep(0.5)  # until it waits for a line
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0
    os.close(theirs)
    os.close(ours)


def test_ctrl_c_ends_an_answer_and_not_the_chat(voices, talk, monkeypatch):
    from transformers import GenerationMixin

    whole, given = GenerationMixin.generate, iter([True])

    def generate(self, *arguments, **named):
        if next(given, False):
            put = named["streamer"].put

            def interrupted(value, seen=[]):  # noqa: B006
                put(value)
                seen.append(value)
                if len(seen) == 3:
                    os.kill(os.getpid(), signal.SIGINT)

            named["streamer"].put = interrupted
        return whole(self, *arguments, **named)

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    status, out, err = talk(QUESTION, "And the dog?")
    assert (status, err) == (0, "")
    begun = answers(voices / "dpo", ("user", QUESTION), length=2)
    assert out.split("> ")[1] == f"{begun}\n"
    assert (
        out.split("> ")[2]
        == answers(voices / "dpo", ("user", QUESTION), ("assistant", begun.strip()), ("user", "And the dog?")) + "\n"
    )

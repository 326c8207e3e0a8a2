import contextlib
import gc
import importlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from pipeline import ROOT
from pipeline.system.process import _quiet

_quiet()
_literal = (ROOT / "Makefile").read_text().partition("LITERAL  := ")[2].partition("\n")[0].split()
for variable in (*_literal, "GOAL", "GOALS", "MAKEFLAGS"):
    os.environ.pop(variable, None)  # of the make that runs the tests
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process that a test starts would compile all of ours again
sys.dont_write_bytecode = False
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # remembered hashes of one session
os.fsync = lambda _: None  # a killed process loses no file, and no test pulls the plug
LOOKS = 4  # batches whose loss each training measures before and after: the fewest that count, where a stage takes eight
SMALL = {
    "pretrain": ["--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--vocab_size", "400",
                 "--max_length", "64", "--max_steps", "6", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2",
                 "--lr_scheduler_type", "constant"],
    "sft": ["--chat_template", "chatml.jinja", "--max_length", "64", "--max_steps", "4", "--per_device_train_batch_size", "2"],
    "dpo": ["--max_length", "64", "--max_steps", "4", "--per_device_train_batch_size", "2"],
}  # fmt: skip
CHAIN = {"pretrain": ("text", None), "sft": ("chats", "pretrain"), "dpo": ("pairs", "sft")}  # shape of data, parent


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup():
    """Leave what was imported since out of the search for garbage with which each training begins: 0.2 s of 0.6."""
    if len(sys.modules) > pytest_runtest_setup.modules + 200:
        pytest_runtest_setup.modules = len(sys.modules)
        gc.collect()
        gc.freeze()


pytest_runtest_setup.modules = len(sys.modules)


@pytest.fixture(autouse=True)
def _own_environment():
    """Give each test the environment that it began with: a command that a test calls may set variables (serve: HF_HUB_OFFLINE)."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def mostly_slow(params, *quick):
    """Return parameters that all prove the same of different things: the quick ones at each test, `make prove` the others."""
    assert all(one in params for one in quick)
    return [param if param in quick else pytest.param(param, marks=pytest.mark.slow) for param in params]


def flags_of(name, chain, data, output=None):
    """Return the flags that make a stage of the small chain."""
    shape, parent = CHAIN[name]
    where = ["--parent", chain / parent] if parent else []
    return [*where, "--output", output or chain / name, "--data", data / f"{shape}.jsonl", *SMALL[name]]


def without(flag, flags):
    """Return flags without one and its value."""
    at = flags.index(flag)
    return flags[:at] + flags[at + 2 :]


def last(flags):
    """Return flags in which a later one replaces an earlier one; a stage's own command line refuses what is given twice."""
    words = list(map(str, flags))
    if any(not word.startswith("--") or "=" in word for word in words[::2]) or len(words) % 2:
        return words  # not all of them are pairs
    return [word for pair in dict(zip(words[::2], words[1::2], strict=True)).items() for word in pair]


def command(name, flags):
    """Return the command line of a stage."""
    return [sys.executable, str(ROOT / "stages" / f"{name}.py"), *last(flags)]


class Fails:
    """A method that works until it is called for the last time."""

    def __init__(self, method, at):
        self.method, self.left = method, at

    def __get__(self, owner, _):
        def call(*given, **named):
            self.left -= 1
            if not self.left:
                raise OSError("pulled the plug")
            return self.method(owner, *given, **named)

        return call


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a stage's script or a command in this process; return (status, what it printed, what it complained about)."""

    def call(name, *flags):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *last(flags)])
        status = status_of(name)
        out, err = capfd.readouterr()
        return status, out, err

    return call


def status_of(name):
    """Run a stage's script or a command with sys.argv as it is."""
    from pipeline.chain import life, stages
    from pipeline.system.process import execute

    if name in stages.known():
        from pipeline.training import outcome

        outcome._BATCHES = LOOKS
        return life.run_stage(type(stages.load(name)))
    return execute(importlib.import_module(f"pipeline.commands.{name}").main)


def make_quietly(name, *flags):
    """Run a stage or a command that must end well, outside of a test."""
    previous = sys.argv
    sys.argv = [name, *map(str, flags)]
    try:
        assert status_of(name) == 0
    finally:
        sys.argv = previous


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Small files of every shape."""
    folder = tmp_path_factory.mktemp("data")
    animals = ["cat", "dog", "hen", "owl", "fox", "bee", "ant", "cow", "elk", "eel"]
    texts = [f"The {a} saw the {b}. The {b} ran from the {a} and was glad of it." for a in animals for b in animals if a != b]
    chats = [
        {"messages": [{"role": "user", "content": f"Who saw the {b}?"}, {"role": "assistant", "content": f"The {a} did."}]}
        for a in animals for b in animals if a != b
    ]  # fmt: skip
    pairs = [
        {"prompt": f"Who saw the {b}?", "chosen": f"The {a} did.", "rejected": f"The {a} did. And so on."}
        for a in animals for b in animals if a != b
    ]  # fmt: skip
    for name, rows in {"text": [{"text": text} for text in texts], "chats": chats, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def chain(tmp_path_factory, data):
    """A finished chain of all stages on small data, made once; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("chain")
    for name in CHAIN:
        make_quietly(name, *flags_of(name, folder, data))
    return folder


@pytest.fixture(scope="session")
def speaker(chain, data, tmp_path_factory):
    """A chat model on the small chain that ends most of its answers by itself, and prompts with right answers."""
    folder = tmp_path_factory.mktemp("speaker")
    flags = ["--method", "full", "--learning_rate", "1e-2", "--max_steps", "60", "--per_device_train_batch_size", "8"]
    make_quietly("sft", *last([*flags_of("sft", chain, data, folder / "sft"), *flags]))
    animals = ["cat", "dog", "hen", "owl", "fox", "bee"]
    rows = [{"prompt": f"Who saw the {a} and the {b}?", "answer": f"The {b} did."} for a in animals for b in animals if a != b]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def voices(chain, tmp_path_factory):
    """The small chain with weights that answer each prompt in other words, which a few steps of training don't reach."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.chain import manifest
    from pipeline.system import hashes

    folder = shutil.copytree(chain, tmp_path_factory.mktemp("voices") / "chain")
    for seed, name in enumerate(("pretrain", "sft", "dpo")):
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        torch.manual_seed(seed)
        for weights in model.parameters():
            if weights.dim() == 2:
                torch.nn.init.normal_(weights, std=0.2)
        spoken = AutoTokenizer.from_pretrained(folder / name)
        rows = model.get_input_embeddings().weight  # tied to the head: a short row is hardly ever the likeliest one
        for token in range(len(rows)):
            rows.data[token] *= 1.0 if spoken.decode([token]).strip().isalpha() else 0.1
        model.save_pretrained(folder / name)
        record = manifest.read(folder / name)
        manifest.write_json(folder / name / manifest.NAME, record | {"files": hashes.files(folder / name)})
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback that takes the token in the environment; nobody waits between tries."""
    import time
    import types

    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    from pipeline.hub import readback, upload
    from tests.hub import Hub

    server = Hub().start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the library read the environment when it was imported
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    hasty = types.SimpleNamespace(**vars(time) | {"sleep": lambda seconds: time.sleep(min(seconds, 0.01))})
    for module in (_http, upload):
        monkeypatch.setattr(module, "time", hasty)
    monkeypatch.setattr(readback, "_LONGEST", 4)  # tokens of each answer that is compared: 60% of a push with all 32
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def evaluated(chain, tmp_path_factory):
    """The small chain with its evaluation, made once: DPO is as good as SFT, SFT better than its base."""
    folder = Path(shutil.copytree(chain, tmp_path_factory.mktemp("evaluated") / "runs"))
    make_quietly("evaluate", "--runs", folder, "--resamples", "100", "--max_new_tokens", "8")
    for name in CHAIN:  # whoever runs the tests may be at work on the code
        path = folder / name / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"code": {"files": {f"stages/{name}.py": "0" * 64}, "commit": "c" * 40, "dirty": False}}))  # fmt: skip
    return folder


@pytest.fixture
def ready(evaluated, tmp_path):
    """Stages that may be pushed, in a folder of the test's own; six steps of pretraining count as enough."""
    folder = Path(shutil.copytree(evaluated, tmp_path / "runs"))
    path = folder / "evaluate.json"
    summary = json.loads(path.read_text())
    for item in [summary["nodes"]["pretrain"]["primary"], *summary["nodes"]["pretrain"]["comparisons"]]:
        item |= {"value": -0.3, "low": -0.4, "high": -0.2, "better": True}
    path.write_text(json.dumps(summary))
    return folder


@pytest.fixture
def copy(chain, tmp_path):
    """The finished chain in a folder of the test's own."""
    return Path(shutil.copytree(chain, tmp_path / "chain"))


@pytest.fixture
def one_step(tmp_path, monkeypatch):
    """Take one step without dropout, in batches of a size; return the gradient's norm and the loss that the trainer logs."""
    import torch
    from transformers import TrainingArguments

    monkeypatch.setattr(torch.nn.functional, "dropout", lambda states, *_, **__: states)
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *given, **named: attention(*given, **named | {"dropout_p": 0.0}),
    )

    def step(trainer, loss, model, collator, dataset, words, size, parts):
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=size, gradient_accumulation_steps=parts, max_steps=1, max_grad_norm=1e9, use_cpu=True,
            remove_unused_columns=False, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, seed=1, learning_rate=0.0,
            label_names=["labels"],
        )  # fmt: skip
        made = trainer(loss, model, arguments, collator, dataset, processing_class=words)
        made.train()
        return np.array([made.state.log_history[0]["grad_norm"], made.state.log_history[0]["loss"]])

    return step


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Small models with random weights, one of each family, as objectives would hand them on."""
    from tests.test_tasks import FAMILIES, parent

    folder = tmp_path_factory.mktemp("parents")
    return {name: parent(folder / name, name) for name in FAMILIES}


@pytest.fixture(scope="session")
def tokenizers():
    """One tokenizer of every kind, trained on the texts of tests/objectives.py."""
    from pipeline.models import tokenization
    from tests.objectives import ROWS

    return {kind: tokenization.train([row["text"] for row in ROWS], 350, 64, kind) for kind in tokenization.KINDS}


@pytest.fixture
def house(monkeypatch, tmp_path):
    """Folders for profiles and recipes that are the test's own."""
    from pipeline.chain import profile
    from pipeline.data import recipe

    for module, name in ((profile, "profiles"), (recipe, "recipes")):
        monkeypatch.setattr(module, "FOLDER", tmp_path / name)
        (tmp_path / name).mkdir()
    return tmp_path


def gone_on_after_a_kill(run, given, folder):
    """Move a finished node aside, train it again, killed after its checkpoint of step 10, and go on; return the digest of its files."""
    from pipeline.chain import manifest, resume
    from pipeline.training import outcome
    from pipeline.training.trainer import Traced

    folder.rename(folder.with_name("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Traced, "__call__", Fails(Traced.__call__, 13))
        patch.setattr(outcome, "losses", lambda trainer: [])
        assert run("pretrain", *given)[0] == 1
    assert resume.latest(folder).name == "checkpoint-10"
    assert run("pretrain", *given)[0] == 0
    return manifest.read(folder)["outputs"]


def killed_in_a_stream(run, given, folder):
    """Make a streaming node twice, `whole` without a break and `killed` at its seventh step, which goes on from its checkpoint of step 4.

    Holds that weights, losses and what is recorded of the rows are the same; returns what the whole one printed and its record.
    """
    from pipeline.chain import manifest
    from pipeline.training.keeper import Keeper

    whole, killed = folder / "whole", folder / "killed"
    status, said, err = run("pretrain", *given, "--output", whole)
    assert status == 0, err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "on_step_end", Fails(Keeper.on_step_end, 7))
        assert run("pretrain", *given, "--output", killed)[0] == 1
    status, out, err = run("pretrain", *given, "--output", killed)
    assert status == 0, err
    assert "goes on from checkpoint-4" in out
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    record, again = manifest.read(whole), manifest.read(killed)
    assert (record["recipe"], record["tokens"]) == (again["recipe"], again["tokens"])
    logs = [[json.loads(line)["loss"] for line in (place / "log.jsonl").read_text().splitlines()] for place in (whole, killed)]
    assert logs[0] == logs[1]
    return said, record


def printed_by_card(hub, card, folder):
    """Run the code on the card of me/any with what was pushed there; return what it prints."""
    from huggingface_hub import HfApi

    block = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]
    where = HfApi(endpoint=hub.url).snapshot_download("me/any", cache_dir=folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(block.replace('"me/any"', repr(where)), {})
    return printed.getvalue()

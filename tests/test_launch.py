"""The same scripts under a launcher, with two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from pipeline import ROOT
from pipeline.chain import manifest, resume
from tests.conftest import CHAIN, SMALL, flags_of, last, mostly_slow
from tests.forked import launched
from tests.test_finetune import flags as task_flags
from tests.test_tasks import parent

BIN = Path(sys.executable).parent
ACCELERATE = [str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "2"]
TORCHRUN = [str(BIN / "torchrun"), "--nproc_per_node", "2"]


def launch(how, name, *flags):
    # a port of its own, so that tests may run side by side
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    command = [*how, str(ROOT / "stages" / f"{name}.py"), *last(flags)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ONE_STEP = ["--optim", "sgd", "--learning_rate", "1", "--max_steps", "1"]


def same_step(two, one):
    """Hold the weights of two processes against those of one."""
    found, wanted = (load_file(folder / "model.safetensors") for folder in (two, one))
    assert max((found[key] - wanted[key]).abs().max().item() for key in wanted) < 1e-5


@pytest.mark.parametrize("name", mostly_slow(list(CHAIN), "sft"))
def test_two_processes_do_what_one_does(run, chain, data, tmp_path, name):
    """One step of plain gradient descent: two processes with one row each move the weights as one with two does."""
    flags = [*flags_of(name, chain, data, tmp_path), *ONE_STEP]
    two, one = (tmp_path / count / name for count in ("two", "one"))
    assert launched(name, [*flags, "--per_device_train_batch_size", "1", "--output", two], tmp_path).count("done in") == 1
    assert run(name, *flags, "--per_device_train_batch_size", "2", "--output", one)[0] == 0
    same_step(two, one)
    assert manifest.read(two)["tokens"] == manifest.read(one)["tokens"]


@pytest.mark.slow
def test_a_launcher_starts_two_processes_or_says_that_it_does_not(chain, data, tmp_path):
    """As above, by torchrun."""
    flags = [*flags_of("sft", chain, data, tmp_path), *ONE_STEP]
    out = launch(TORCHRUN, "sft", *flags, "--per_device_train_batch_size", "1", "--output", tmp_path / "two" / "sft")
    assert out.count("done in") == 1
    one = ["--per_device_train_batch_size", "2", "--output", tmp_path / "one" / "sft"]
    out = launch(ACCELERATE, "sft", *flags, *one)  # which is one process, whatever it was told
    assert "accelerate launch --cpu starts 1 process, not 2; for 2 use LAUNCH='torchrun --nproc_per_node 2'" in out
    same_step(tmp_path / "two" / "sft", tmp_path / "one" / "sft")
    assert manifest.read(tmp_path / "two" / "sft")["tokens"] == manifest.read(tmp_path / "one" / "sft")["tokens"]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_nothing_is_sealed(chain, data, tmp_path):
    """A stop that only one of two was asked for: both save, no half-trained model counts as finished."""
    flags = [*flags_of("sft", chain, data, tmp_path / "sft"), "--max_steps", "4000", "--logging_steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    script = [*TORCHRUN, str(ROOT / "stages" / "sft.py"), *last(flags)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        log = tmp_path / "sft" / "log.jsonl"
        while not (log.exists() and '"step": 5' in log.read_text()):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children()
        (second,) = (worker for worker in workers if worker.environ().get("RANK") == "1")
        second.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert "is saved and the same command goes on from there" in said
    assert not (tmp_path / "sft" / manifest.NAME).exists()
    assert resume.fault(resume.latest(tmp_path / "sft")) == ""


@pytest.mark.slow
def test_an_objective_whose_model_has_parts_without_a_loss(tmp_path, data):
    """BERT's pooler is in no contrastive loss; a process that waited for its gradient would wait for ever."""
    flags = [*SMALL["pretrain"], "--data", data / "text.jsonl", "--output", tmp_path / "out", "--objective", "contrastive"]
    assert launched("pretrain", [*flags, "--max_steps", "3"], tmp_path).count("done in") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification", "similarity"])
def test_two_processes_fine_tune_as_one_does(run, tmp_path, name):
    """As above, for a task; with patience both processes validate and agree on when to stop."""
    source = parent(tmp_path / "parent", "mlm")
    settings = json.loads((source / "config.json").read_text())
    still = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    (source / "config.json").write_text(json.dumps(settings | still))
    more = ["--optim", "sgd", "--learning_rate", "0.5", "--patience", "1", "--validation", "0.3", "--max_steps", "1"]
    flags = [*task_flags(name, {"mlm": source}, tmp_path), *more]
    out = launched("finetune", [*flags, "--per_device_train_batch_size", "1", "--output", tmp_path / "two"], tmp_path)
    assert out.count("done in") == out.count("validation") == 1
    assert run("finetune", *flags, "--per_device_train_batch_size", "2", "--output", tmp_path / "one")[0] == 0
    same_step(tmp_path / "two", tmp_path / "one")

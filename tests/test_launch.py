"""The same scripts under `accelerate launch` with two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline import ROOT, manifest
from tests.conftest import SMALL

LAUNCH = [str(Path(sys.executable).parent / "accelerate"), "launch", "--cpu", "--num_processes", "2"]


def launch(name, *flags, how=tuple(LAUNCH)):
    # one port for each call, so that tests may run side by side
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    done = subprocess.run(
        [*how, str(ROOT / "stages" / f"{name}.py"), *map(str, flags)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_processes_walk_the_chain(chain, data, tmp_path):
    """One step of plain gradient descent: two processes with one row each move the weights as one with two does."""
    for name, shape, parent in (("pretrain", "text", None), ("sft", "chats", "pretrain"), ("dpo", "pairs", "sft")):
        where = ["--parent", chain / parent] if parent else []
        flags = [
            *where,
            *SMALL[name],
            "--data",
            data / f"{shape}.jsonl",
            "--optim",
            "sgd",
            "--learning_rate",
            "1",
            "--max_steps",
            "1",
        ]
        flags += ["--logging_steps", "1"]
        out = launch(name, *flags, "--per_device_train_batch_size", "1", "--output", tmp_path / "two" / name)
        assert out.count("done in") == 1
        again = launch(
            name, *flags, "--per_device_train_batch_size", "1", "--output", tmp_path / "two" / name, how=[sys.executable]
        )
        assert "up to date" in again
        launch(name, *flags, "--per_device_train_batch_size", "2", "--output", tmp_path / "one" / name, how=[sys.executable])
        two, one = (load_file(tmp_path / count / name / "model.safetensors") for count in ("two", "one"))
        assert max((two[key] - one[key]).abs().max().item() for key in one) < 1e-5
        assert manifest.read(tmp_path / "two" / name)["tokens"] == pytest.approx(
            manifest.read(tmp_path / "one" / name)["tokens"], abs=64
        )

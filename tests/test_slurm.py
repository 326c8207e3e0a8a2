"""`make slurm`: what its script asks for, what is refused, and a job on two nodes that is preempted and goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.chain import manifest, resume
from tests.checkout import copied, environment, runs, write_profile
from tests.conftest import CHAIN, SMALL
from tests.forked import launched

GIVEN = ["--profile", "tiny", "--nodes", "2", "--gpus", "8", "--time", "12:00:00"]


def test_the_script_asks_for_what_was_said(run, tmp_path):
    status, out, _ = run("slurm", *GIVEN, "--runs", tmp_path, "--partition", "long", "--account", "us", "--goal", "sft")
    file = tmp_path / "tiny" / "slurm.sh"
    assert (status, out) == (0, f"slurm    wrote {file}; next: sbatch {file}\n")
    said = [line.removeprefix("#SBATCH ") for line in file.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--gpus-per-node=8", "--time=12:00:00", "--requeue", "--partition=long", "--account=us"} <= set(said)
    assert f"make PROFILE=tiny RUNS={tmp_path} sft &" in file.read_text()
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0


def test_all_faults_are_told_and_nothing_is_written(run, tmp_path):
    flags = ["--profile", "tiny", "--runs", tmp_path, "--nodes", "0", "--time", "soon", "--partition", "a;b", "--goal", "sff"]
    status, _, err = run("slurm", *flags)
    assert status == 2
    for key in ("nodes", "time", "partition", "goal"):
        assert f"slurm: command line: {key}: " in err
    assert not (tmp_path / "tiny").exists()


@pytest.mark.slow
def test_a_preempted_job_on_two_nodes_ends_with_the_weights_of_one_that_was_not(run, data, tmp_path):
    """SLURM itself is stood in for by tests/cluster: two nodes that are this machine; srun, torchrun and make are real."""
    checkout, (rows, _) = copied(tmp_path / "checkout"), CHAIN["pretrain"]
    keys = dict(zip((key[2:] for key in SMALL["pretrain"][::2]), SMALL["pretrain"][1::2], strict=True))
    keys |= {"recipe": tmp_path / "rows.yaml", "max_steps": 300, "save_steps": 20}
    (tmp_path / "rows.yaml").write_text(f"type: text\nsources:\n  - files: {data / rows}.jsonl\n")
    write_profile(checkout, "cluster", pretrain="".join(f"{key}: {value}\n" for key, value in keys.items()))
    (checkout / ".venv").symlink_to(Path(sys.executable).parent.parent)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "make").write_text('#!/bin/bash\nexec /usr/bin/make -o .venv/.ready "$@"\n')
    (binaries / "make").chmod(0o755)

    words = ["--profile", "cluster", "--runs", "runs", "--nodes", "2", "--gpus", "0", "--time", "1:00:00", "--goal", "pretrain"]
    places = [str(binaries), str(ROOT / "tests" / "cluster"), str(Path(sys.executable).parent), os.environ["PATH"]]
    around = environment(checkout, PATH=":".join(places), PREEMPT=f"runs/cluster/pretrain/checkpoint-20/{resume.SEAL}")
    made = [sys.executable, "-m", "pipeline.commands.slurm", *words]
    subprocess.run(made, cwd=checkout, env=around, check=True, timeout=60)
    job = ["sbatch", "runs/cluster/slurm.sh"]
    done = subprocess.run(job, cwd=checkout, env=around, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("goes on from checkpoint-") == 1

    config = checkout / "stages" / "profiles" / "cluster" / "pretrain.yaml"
    launched("pretrain", ["--config", config, "--output", tmp_path / "whole"], tmp_path)
    found, wanted = (manifest.read(folder) for folder in (runs(checkout, "cluster") / "pretrain", tmp_path / "whole"))
    assert found["files"]["model.safetensors"] == wanted["files"]["model.safetensors"]

"""A stream under torchrun: two processes read disjoint parts, all rows once in an epoch, and go on after a kill as if none had been."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.chain import resume
from pipeline.data import ranges, recipe, stream
from tests.conftest import SMALL, last
from tests.test_stream import epoch, groups, lines, texts, written

pytestmark = pytest.mark.slow
TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2"]
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from pipeline.chain import life, stages
from pipeline.data import ranges, stream
from pipeline.training import keeper, streamed

stream.CHUNK, ranges.NEAR = 4000, 500
give, step = streamed.Reader.give, keeper.Keeper.on_step_end

def logged(self):
    place, at = self._heads[0].place, self.next
    example = give(self)
    with Path(os.environ["ROWS"], os.environ["RANK"]).open("a") as file:
        file.write(json.dumps([at, place.epoch, example["row"]]) + "\\n")
    return example

def killed(self, args, state, control, **more):
    if str(state.global_step) == os.environ.get("KILL") and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, args, state, control, **more)

streamed.Reader.give, keeper.Keeper.on_step_end = logged, killed
sys.exit(life.run_stage(type(stages.load("pretrain"))))
"""


def started(folder, flags, **more):
    """Run the stage in two processes; return the exit status, what was printed, and for each process number, epoch and row of what it read."""
    folder.mkdir(exist_ok=True)
    (folder / "pretrain.py").write_text(SCRIPT)
    environment = os.environ | {"ROWS": str(folder), "MASTER_PORT": str(20000 + os.getpid() % 20000), "PYTHONPATH": str(ROOT)}
    words = [*TORCHRUN, str(folder / "pretrain.py"), *last(flags)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment | {"OMP_NUM_THREADS": "1"} | more, cwd=ROOT
    )
    read = [[json.loads(line) for line in (folder / rank).read_text().splitlines()] for rank in "01"]
    for rank in "01":
        (folder / rank).unlink()
    return done.returncode, done.stdout + done.stderr, [_trained(rows) for rows in read]


def _trained(read):
    """Return what was read for training: the first rows are looked at before and after it, too."""
    begins = [0, *(at for at in range(1, len(read)) if read[at][0] != read[at - 1][0] + 1), len(read)]
    return max((read[start:stop] for start, stop in itertools.pairwise(begins)), key=len)


def test_two_processes_read_all_rows_once_and_go_on_after_a_kill_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stream, "CHUNK", 4000)
    monkeypatch.setattr(ranges, "NEAR", 500)
    (tmp_path / "a.jsonl").write_text(lines(texts(0, 150)))
    groups(tmp_path / "c.parquet", texts(150, 250), 10)
    name = written(tmp_path, dict.fromkeys(["a.jsonl", "c.parquet"], "weight: 1"))
    flags = ["--recipe", name, *SMALL["pretrain"], "--objective", "mlm", "--vocab_size", "200", "--max_steps", "36"]
    flags += ["--per_device_train_batch_size", "4", "--save_steps", "8", "--logging_steps", "4"]

    status, said, whole = started(tmp_path / "whole", [*flags, "--output", tmp_path / "whole" / "out"])
    assert status == 0, said
    assert [number for number, _, _ in whole[0]] == list(range(36 * 4)), "no process reads what is another's"
    first = [Counter(row for _, turn, row in read if turn == 0) for read in whole]
    assert all(read[-1][1] == 1 for read in whole), "both began another epoch"
    assert not first[0] & first[1]
    every = recipe.load(name).rows("text", "train", 42)
    assert sum(first, Counter()) == Counter(origin for _, origin in epoch(every)[0])

    out = tmp_path / "killed" / "out"
    status, said, before = started(tmp_path / "killed", [*flags, "--output", out], KILL="20")
    assert status != 0, said
    assert resume.latest(out).name == "checkpoint-16"
    status, said, after = started(tmp_path / "killed", [*flags, "--output", out])
    assert status == 0, said
    assert "goes on from checkpoint-16" in said
    assert [read[: 16 * 4] + more for read, more in zip(before, after, strict=True)] == whole, (
        "each goes on behind its last row"
    )
    one, two = (tmp_path / folder / "out" for folder in ("whole", "killed"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    records = [json.loads((folder / "manifest.json").read_text()) for folder in (one, two)]
    assert records[0]["recipe"] == records[1]["recipe"]
    losses = [[json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, two)]
    assert losses[0] == losses[1]

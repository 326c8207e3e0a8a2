"""What `make plan` predicts beside what the run takes then, on setups of several families, sizes and methods.

    python -m pytest -m measured tests/test_plan_figures.py -s

Each node is planned (20 steps), then run for 25 steps in processes of its own, three times: the memory of each beyond what it had
imported, and the median of their times.
"""

import json
import math
import statistics
import tempfile
from pathlib import Path

import pytest

from pipeline.chain import profile
from pipeline.commands import _plan
from pipeline.commands._forked import forked
from pipeline.commands._plan import devices

pytestmark = pytest.mark.measured
STEPS, RUNS = 25, 3
LARGE = "hidden_size: 512\nnum_hidden_layers: 10\nnum_attention_heads: 8\nvocab_size: 1024\n"
SHORT = "max_length: 64\nper_device_train_batch_size: 2\nlearning_rate: 1e-4\n"
CHAT = "max_length: 64\nper_device_train_batch_size: 2\nlearning_rate: 1e-5\n"
SETUPS = {
    "pretrain-llama": LARGE + SHORT,
    "pretrain-gpt2": "architecture: gpt2\n" + LARGE + SHORT,
    "pretrain-deep": LARGE.replace("10", "18").replace("512", "384") + SHORT,
    "pretrain-checkpointed": "gradient_checkpointing: true\n" + LARGE + SHORT.replace("size: 2", "size: 8"),
    "pretrain-accumulated": "gradient_accumulation_steps: 2\n" + LARGE + SHORT,
    "pretrain-adafactor": "optim: adafactor\n" + LARGE.replace("10", "18") + SHORT,
    "pretrain-mlm": "objective: mlm\n" + LARGE.replace("10", "12") + SHORT,
    "pretrain-rtd": "objective: rtd\n" + LARGE.replace("10", "12") + SHORT,
    "pretrain-t5": "objective: span_corruption\n" + LARGE.replace("10", "6") + SHORT,
    "sft": "parent: pretrain-llama\nchat_template: chatml.jinja\nmethod: full\n" + CHAT,
    "sft-lora": "parent: pretrain-llama\nchat_template: chatml.jinja\n" + CHAT.replace("size: 2", "size: 16"),
    "dpo": "parent: sft\nmethod: full\n" + CHAT,
    "dpo-lora": "parent: sft\n" + CHAT.replace("size: 2", "size: 6"),
    "kto": "parent: sft\nmethod: full\n" + CHAT.replace("size: 2", "size: 4"),
    "reward": "parent: sft\nmethod: full\n" + CHAT,
}


def taken(planner, node, scratch):
    """Run a node for so many steps; return the bytes that it held beyond what was imported, and the seconds of its training."""
    output = Path(tempfile.mkdtemp(dir=scratch)) / node.name
    argv = [str(node.stage.script), "--config", str(node.file), "--output", str(output), "--max_steps", str(STEPS)]
    for role, name in node.parents.items():
        argv += [f"--{role}", str(planner.place(name))]
    watched, seen, log = _plan.Watched(), output.with_suffix(".memory"), output.with_suffix(".log")
    flags = [*argv, "--save_strategy", "'no'"]
    status = forked(node, flags, log, watched.begin, lambda: seen.write_text(str(watched.more())))
    assert status == 0, log.read_text()
    record = json.loads((output / "manifest.json").read_text())
    return int(seen.read_text()), record["training_seconds"]


def test_memory_and_time_are_as_predicted(tmp_path):
    nodes = tmp_path / "setups"
    nodes.mkdir()
    for name, text in SETUPS.items():
        (nodes / f"{name}.yaml").write_text(text)
    planner = _plan.Planner(profile.load(nodes), tmp_path / "runs", tmp_path / "scratch", devices.this())
    print(
        f"\n{'setup':<22} {'predicted':>9} {'tensors':>8} {'measured':>8} {'ratio':>6}   {'s a step':>8} {'measured':>8} {'ratio':>6}"
    )
    memory, time = {}, {}
    for planned in planner.planned():
        assert not planned.why, (planned.name, planned.why)
        runs = [taken(planner, planner.whole.nodes[planned.name], tmp_path) for _ in range(RUNS)]
        held, seconds = statistics.median(one[0] for one in runs), statistics.median(one[1] for one in runs) / STEPS
        step = planned.found["measured"]["seconds_a_step"]
        memory[planned.name], time[planned.name] = planned.peak / held, step / seconds
        print(
            f"{planned.name:<22} {planned.peak / 1e6:>9,.0f} {planned.found['held'] / 1e6:>8,.0f} {held / 1e6:>8,.0f} {planned.peak / held:>6.2f}   "
            f"{step:>8.3f} {seconds:>8.3f} {step / seconds:>6.2f}",
            flush=True,
        )
        if held < 500e6:
            memory.pop(planned.name)
    assert len(memory) >= 12
    assert all(math.isclose(ratio, 1, abs_tol=0.10) for ratio in memory.values()), memory
    assert all(math.isclose(ratio, 1, abs_tol=0.15) for ratio in time.values()), time

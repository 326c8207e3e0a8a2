"""What `make plan` predicts beside what the run takes then, on setups of several families, sizes and methods.

    python -m pytest -m measured tests/test_plan_figures.py -s

Each node is planned (20 steps), then run three times in processes of its own; the medians count. Memory is what exceeds the
imported process, at any moment from its begin to its end. Time is the processor's, which other work on the machine does not change.
"""

import math
import statistics

import pytest

from pipeline.chain import profile
from pipeline.commands import _plan
from pipeline.commands._plan import devices
from tests.measured import taken

pytestmark = pytest.mark.measured
STEPS, RUNS = 15, 3
FEWER = {"sft-lora": 7}  # steps of those that cost more
SIZE = "hidden_size: 512\nnum_hidden_layers: 10\nnum_attention_heads: 8\nvocab_size: 1024\n"
DEEP = SIZE.replace("512", "384").replace("10", "20")
SHORT = "max_length: 16\nper_device_train_batch_size: 2\nlearning_rate: 1e-4\n"
CHAT = "max_length: 64\nper_device_train_batch_size: 1\nlearning_rate: 1e-5\n"
SETUPS = {
    "pretrain-llama": SIZE + SHORT.replace("16", "64").replace("size: 2", "size: 1"),
    "pretrain-gpt2": "architecture: gpt2\n" + SIZE + SHORT,
    "pretrain-deep": DEEP + SHORT.replace("size: 2", "size: 4"),
    "pretrain-checkpointed": "gradient_checkpointing: true\n" + SIZE + SHORT.replace("size: 2", "size: 8"),
    "pretrain-accumulated": "gradient_accumulation_steps: 2\n" + SIZE + SHORT,
    "pretrain-adafactor": "optim: adafactor\n" + SIZE.replace("10", "20") + SHORT,
    "pretrain-mlm": "objective: mlm\n" + SIZE.replace("10", "12") + SHORT,
    "pretrain-rtd": "objective: rtd\n" + SIZE.replace("10", "12") + SHORT,
    "pretrain-t5": "objective: span_corruption\n" + SIZE.replace("10", "6") + SHORT,
    "sft": "parent: pretrain-llama\nchat_template: chatml.jinja\nmethod: full\n" + CHAT,
    "dpo": "parent: sft\nmethod: full\n" + CHAT,
    "kto": "parent: sft\nmethod: full\n" + CHAT.replace("size: 1", "size: 2"),
    "reward": "parent: sft\nmethod: full\n" + CHAT,
    "sft-lora": "parent: pretrain-llama\nchat_template: chatml.jinja\n" + CHAT.replace("size: 1", "size: 12"),
}


def test_memory_and_time_are_as_predicted(tmp_path):
    nodes = tmp_path / "setups"
    nodes.mkdir()
    for name, text in SETUPS.items():
        (nodes / f"{name}.yaml").write_text(text)
    planner = _plan.Planner(profile.load(nodes), tmp_path / "runs", tmp_path / "scratch", devices.this())
    print(
        f"\n{'setup':<22} {'predicted':>9} {'tensors':>8} {'measured':>8} {'ratio':>6}   {'s a step':>8} {'measured':>8} {'ratio':>6}"
    )
    memory, times = {}, {}
    for planned in planner.planned():
        assert not planned.why, (planned.name, planned.why)
        node, steps = planner.whole.nodes[planned.name], FEWER.get(planned.name, STEPS)
        runs = [taken(planner, node, tmp_path, steps) for _ in range(RUNS)]
        held, seconds = (statistics.median(one[at] for one in runs) for at in ("held", "processor"))
        step = planned.found["measured"]["processor_seconds_a_step"]
        times[planned.name] = step / seconds
        if held >= 500e6:
            memory[planned.name] = planned.peak / held
        print(
            f"{planned.name:<22} {planned.peak / 1e6:>9,.0f} {planned.found['held'] / 1e6:>8,.0f} {held / 1e6:>8,.0f} {planned.peak / held:>6.2f}   "
            f"{step:>8.3f} {seconds:>8.3f} {step / seconds:>6.2f}",
            flush=True,
        )
    assert len(memory) >= 12
    assert all(math.isclose(ratio, 1, abs_tol=0.10) for ratio in memory.values()), memory
    assert all(math.isclose(ratio, 1, abs_tol=0.15) for ratio in times.values()), times

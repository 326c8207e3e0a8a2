"""A node's training in a process of its own, with the memory and the time that it takes."""

import json
import math
import os
import tempfile
from pathlib import Path

from pipeline.commands import _plan
from pipeline.commands._forked import forked


def as_it_is(trainer, clock):
    """Train by the trainer's own loop."""
    from pipeline.training.trainer import StageTrainer

    trainer.add_callback(clock)
    super(StageTrainer, trainer).train()


def taken(planner, node, scratch, steps, train=as_it_is, hand_over=True):
    """Run a node for so many steps; return `held` bytes beyond what was imported, and of a step `seconds`, `processor` and `tokens`.

    `train`: trainer, clock → None, in place of its own loop. `hand_over`: whether it ends as a stage does, or with its last step.
    """
    from pipeline.training import planned
    from pipeline.training.trainer import StageTrainer

    output = Path(tempfile.mkdtemp(dir=scratch)) / node.name
    argv = [str(node.stage.script), "--config", str(node.file), "--output", str(output), "--max_steps", str(steps)]
    for role, name in node.parents.items():
        argv += [f"--{role}", str(planner.place(name) or name)]
    watched, seen, log = _plan.Watched(), output.with_suffix(".json"), output.with_suffix(".log")
    clock, found = planned._Clock(math.inf), {}

    def before():
        def instead(trainer, **_):
            train(trainer, clock)
            found["tokens"] = int(trainer.state.num_input_tokens_seen) / max(1, len(clock.times))
            if not hand_over:
                after()
                os._exit(0)

        StageTrainer.train = instead
        watched.begin()

    def after():
        times = {"seconds": planned._mean(clock.times), "processor": planned._mean(clock.processor)}
        seen.write_text(json.dumps({"held": watched.more(), **times, **found}))

    assert forked(node, [*argv, "--save_strategy", "'no'"], log, before, after) == 0, log.read_text()[-3000:]
    return json.loads(seen.read_text())

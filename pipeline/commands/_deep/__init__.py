"""The invariance battery: what the tests prove on small models, measured on a profile's own models and rows.

Each node is trained for a few steps into a scratch folder, in several ways that must end alike.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, profile
from pipeline.chain.profile import Node
from pipeline.chain.stage import ROWS
from pipeline.commands import _forked
from pipeline.commands._deep import models
from pipeline.commands._forked import forked

_STEPS, _SAVE = 6, 2  # of the optimizer; between checkpoints
_RUNS = 8  # of each node, or what takes as long
_EXACT = 2e-3  # of what a step moves, between two ways to sum the same gradient in fp32
_STILL = 1e-4  # a step that moves weights by less would be compared with their rounding in fp32
_SEEN = 2000  # last characters of what a run printed, for the reason of a failure
_BRIEF = ["--save_strategy", "steps", "--save_steps", str(_SAVE), "--logging_steps", "1"]
_DESCENT = [
    "--optim", "sgd", "--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", "{}",
    "--warmup_steps", "0", "--max_grad_norm", "0", "--train_sampling_strategy", "random", "--max_steps", "1", "--learning_rate",
]  # fmt: skip
_RATE = 0.1  # of the one step of plain descent; with twice as much the step is twice as long, which tells how long it is


@dataclasses.dataclass(frozen=True)
class Identity:
    """Two ways that must end alike, and by how much they differ; `allowed` is None where it could not be measured."""

    node: str
    name: str
    found: float = 0.0
    allowed: float | None = None
    why: str = ""
    failed: bool = False  # whether the node did not train, so that nothing of it is known

    @property
    def holds(self) -> bool:
        """Whether the deviation is allowed; what could not be measured does not fail, a node that does not train does."""
        return not self.failed and (self.allowed is None or self.found <= self.allowed)


class Battery:
    """The nodes of a profile in a scratch folder, each trained for a few steps on the ones before it."""

    def __init__(self, whole: profile.Profile, scratch: Path) -> None:
        self.whole, self.scratch = whole, scratch
        self.nodes = [
            node for node in whole.nodes.values()
            if node.signature and node.signature.gives != ROWS and not node.control_of and "data" not in node.parents
        ]  # fmt: skip

    def measured(self, say: Any) -> Iterator[Identity]:
        """Yield the identities of each node, parents first; say after the first run how long all will take."""
        for number, node in enumerate(self.nodes):
            started = time.monotonic()
            trains = node.stage.library_of(node.settings) is not None
            if said := self.run(node, "whole", *(["--max_steps", str(_STEPS), *_BRIEF] if trains else [])):
                yield Identity(node.name, "trains for a few steps", why=said, failed=True)
            if said or not trains:
                continue
            if not number:
                seconds = _RUNS * len(self.nodes) * (time.monotonic() - started)
                say(f"about {max(1, round(seconds / 60))} min for {len(self.nodes)} node{'s'[: len(self.nodes) > 1]}")
            yield from self.of(node)

    def of(self, node: Node) -> Iterator[Identity]:
        """Yield the identities of one node, whose short run is there."""
        yield self.resumed(node)
        yield from self.batches(node)
        folder = self.place(node, "whole")
        record = manifest.read(folder) or {}
        if "merge_error" in record:
            yield Identity(node.name, "merged = adapter", float(record["merge_error"]), 1e-3)
        first = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
        if "rewards/margins" in first:
            margin = first["rewards/margins"]
            if record["recipe"]["type"] == "preference":
                gap = math.log1p(math.exp(-margin)) - math.log(2)
                yield Identity(node.name, "loss of pairs before the first step = ln 2", abs(gap), 1e-4)
            else:
                yield Identity(node.name, "margin of rewards before the first step = 0", abs(margin), 1e-4)
        if record.get("family") == "causal":
            text = models.texts(record)
            for name, found, allowed in models.identities(folder, text):
                yield Identity(node.name, name, found, allowed)

    def resumed(self, node: Node) -> Identity:
        """Kill a run after its third step, run it again, and compare the bytes of the weights."""
        name, steps = "resumed = uninterrupted", ["--max_steps", str(_STEPS), *_BRIEF]
        self.run(node, "resumed", *steps, kill_after=_SAVE + 1)
        if not any(self.place(node, "resumed").glob("checkpoint-*")):
            return Identity(node.name, name, why="no checkpoint was there when it was killed")
        if said := self.run(node, "resumed", *steps):
            return Identity(node.name, name, why=said)
        return Identity(node.name, name, self.apart(node, "whole", "resumed"), 0.0)

    def batches(self, node: Node) -> Iterator[Identity]:
        """Take one step of plain gradient descent on the same rows: at once, in two parts, on two processes."""
        size = int(node.settings.get("per_device_train_batch_size", 8))
        size -= size % 2
        half = ["--per_device_train_batch_size", str(size // 2)]
        ways = {
            "accumulated = whole": ("accumulated", [*half, "--gradient_accumulation_steps", "2"], 1),
            "two processes = one": ("processes", [*half, "--gradient_accumulation_steps", "1"], 2),
        }
        one = ["--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", "1"]
        wrong = "one row a batch" if size < 2 else ""
        for way, rate in (("step", _RATE), ("twice", 2 * _RATE)):
            wrong = wrong or self.run(node, way, *_DESCENT, str(rate), *one)
        moved = 0.0 if wrong else self.apart(node, "step", "twice")
        wrong = wrong or ("" if moved > _STILL else f"a step moves no weight by more than {moved:.1e}")
        for name, (way, flags, count) in ways.items():
            if said := wrong or self.run(node, way, *_DESCENT, str(_RATE), *flags, processes=count):
                yield Identity(node.name, name, why=said)
                continue
            found = self.apart(node, "step", way) / moved
            yield Identity(node.name, f"{name} (of what the step moves)", found, _EXACT)

    def apart(self, node: Node, one: str, other: str) -> float:
        """Return the largest difference of a weight between two runs."""
        from safetensors.torch import load_file

        first, second = (load_file(self.place(node, way) / "model.safetensors") for way in (one, other))
        return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)

    def place(self, node: Node, way: str) -> Path:
        """Return the folder of a node that is made in one of the ways."""
        return self.scratch / way / node.name

    def parent(self, node: Node, role: str) -> Path:
        """Return where a parent lies: its short run, or a model from outside of the profile."""
        name = node.parents[role]
        return self.place(self.whole.nodes[name], "whole") if name in self.whole.nodes else Path(name)

    def run(self, node: Node, way: str, *flags: str, kill_after: int = 0, processes: int = 1) -> str:
        """Run a node in one of the ways; return why it failed, or "". `kill_after`: steps after which it is killed."""
        given = ["--config", str(node.file), "--output", str(self.place(node, way))]
        for role in node.parents:
            given += [f"--{role}", str(self.parent(node, role))]
        argv = [str(node.stage.script), *given, *flags]
        printed = self.scratch / f"{node.name}-{way}.log"
        status = (
            _launched(argv, printed, processes)
            if processes > 1
            else forked(node, argv, printed, before=partial(_kill_after, kill_after))
        )
        lines = printed.read_text(encoding="utf-8", errors="replace")[-_SEEN:].strip().splitlines()
        return "" if status == 0 else (lines[-1] if lines else f"status {status}")


def _launched(argv: Sequence[str], printed: Path, processes: int) -> int:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    with printed.open("w") as out:
        return subprocess.run(
            [*launch, *argv], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        ).returncode


def _kill_after(steps: int) -> None:
    if not steps:
        return
    from torch.optim.optimizer import register_optimizer_step_post_hook

    taken = [0]

    def count(*_: Any) -> None:
        taken[0] += 1
        if taken[0] == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(count)


def load_libraries(nodes: Sequence[Node]) -> None:
    """Import what the nodes' stages need before the first fork."""
    _forked.load_libraries((node.stage.library_of(node.settings) for node in nodes), "pipeline.training.loop")
    importlib.import_module("torch").set_num_threads(1)


def table(identities: Sequence[Identity]) -> list[str]:
    """Return the lines of the table: node, identity, the deviation found and the one that is allowed."""
    wide, long = max(len(one.node) for one in identities), max(len(one.name) for one in identities)
    lines = [f"{'node':<{wide}}  {'identity':<{long}}  {'found':>8}  {'allowed':>8}"]
    for one in identities:
        if one.allowed is None:
            lines.append(f"{one.node:<{wide}}  {one.name:<{long}}  not measured: {one.why}")
            continue
        verdict = "" if one.holds else "  DIFFERS"
        lines.append(f"{one.node:<{wide}}  {one.name:<{long}}  {one.found:>8.1e}  {one.allowed:>8.1e}{verdict}")
    return lines

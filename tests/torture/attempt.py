"""One process of a node, watched from outside: which phase it is in, by its files and its output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.chain import manifest, resume
from tests import checkout
from tests.torture.chain import EVALUATE, Chain


def _holds(folder: Path, pattern: str) -> bool:
    """Say whether a file is there; one whose folder goes or is renamed while it is looked for is not, until the next look."""
    try:
        return any(True for _ in folder.glob(pattern))
    except FileNotFoundError:
        return False


class Attempt:
    """One process of a node, watched from outside."""

    def __init__(self, chain: Chain, name: str, where: Path) -> None:
        self.chain, self.name, self.folder = chain, name, where / name
        where.mkdir(parents=True, exist_ok=True)
        self.told = where / f"{name}.out"
        with self.told.open("w") as out:
            self.process = subprocess.Popen(
                chain.command(name, where), stdout=out, stderr=subprocess.STDOUT, cwd=chain.checkout,
                env=checkout.environment(chain.checkout) | {"CACHE": str(where / f"cache-{name}")}, start_new_session=True,
            )  # fmt: skip
        self.started = time.perf_counter()

    @property
    def steps(self) -> int:
        """How many steps the node takes."""
        return self.chain.steps(self.name)

    def has(self, pattern: str) -> bool:
        """Say whether a file is there."""
        return _holds(self.folder, pattern)

    def prepares(self) -> bool:
        """Say whether the node's tokens are being written, or are there already."""
        return self.has(".data/shard-*") or _holds(self.folder.parent, f"cache-{self.name}/tokens-*/shard-*")

    def said(self, text: str) -> bool:
        """Say whether the stage has printed something."""
        return text in self.told.read_text()

    def logged(self) -> int:
        """Return the last step in the log."""
        try:
            lines = (self.folder / "log.jsonl").read_text().splitlines()
            return int(json.loads(lines[-1])["step"]) if lines else 0
        except (OSError, json.JSONDecodeError):
            return 0

    def sampling(self) -> bool:
        """Say whether answers of a block are there from which nothing has been made so far."""
        rounds = {path.name.partition("-")[0] for path in self.folder.glob(".blocks/*.json")}
        if not self.steps:
            return bool(rounds) and not self.made("held_out.parquet")
        return len(rounds) > 0 and self.logged() <= (len(rounds) - 1) * self.steps // self.chain.rounds(self.name)

    def made(self, *names: str) -> bool:
        """Say whether one of the files that a node hands on is there."""
        return any((self.folder / place / name).exists() for name in names for place in (".result", "."))

    def saving(self) -> bool:
        """Say whether a checkpoint is there without its seal."""
        return any(not (path / resume.SEAL).exists() for path in self.folder.glob("checkpoint-*"))

    def trained(self) -> bool:
        """Say whether the last checkpoint is sealed, or gone already."""
        last = self.folder / f"checkpoint-{self.steps}" / resume.SEAL
        return last.exists() or self.has("model.safetensors")

    def alive(self) -> bool:
        """Say whether the process still runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL to the process and all of its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


State = Callable[[Attempt], bool]


# Phase: whether it has begun, whether it is over.
PHASES: dict[str, tuple[State, State]] = {
    "data preparation": (lambda a: a.prepares(), lambda a: a.said("dropped:")),
    "tokenizer": (lambda a: a.said("trains a tokenizer"), lambda a: a.prepares() or a.said("streamed")),
    "steps": (lambda a: a.logged() > 0, lambda a: a.saving() or a.logged() >= a.steps),
    "checkpoint save": (lambda a: a.saving(), lambda a: not a.saving()),
    "sampling": (lambda a: a.sampling(), lambda a: not a.sampling()),
    "merging": (lambda a: a.trained(), lambda a: a.made("model.safetensors")),
    "manifest": (
        lambda a: a.made("model.safetensors", "held_out.parquet"),
        lambda a: a.has(manifest.NAME) and not a.has(manifest.CLAIM),
    ),
    EVALUATE: (lambda a: a.said("measures"), lambda a: (a.folder.parent / "evaluate.json").exists()),
}


def wait(attempt: Attempt, state: State) -> bool:
    """Wait until a state is reached; False where the process ended before."""
    while not state(attempt):
        if not attempt.alive():
            return state(attempt)
        time.sleep(0.0005)
    return True

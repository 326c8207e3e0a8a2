"""Carries out a setup in a process forked after the imports, and says how it ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tests.zoo import CORRECT, FAULTS, OPTIONS, PARENT, Case, Setup

EARLY, LATE, WARNED, SILENT = "stopped before the first step", "stopped later", "warned", "silent"
SECONDS = 90  # after which a setup is ended and counts as silent
LENGTH = 64
_NUMBERS = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?%?|0x[0-9a-f]+|nan|inf")


_NOISE = re.compile(r"\d+%\||^\{'|it/s\]|examples/s\]|s/it\]")  # progress bars, and figures as the Trainer prints them


@dataclass(frozen=True)
class Ended:
    """How a training ended."""

    status: int
    steps: int  # of the optimizer
    printed: str
    seconds: float

    @property
    def traceback(self) -> bool:
        """Whether a person was shown a traceback."""
        return "Traceback (most recent call last)" in self.printed

    def lines(self) -> set[str]:
        """Return what was printed without its numbers, progress bars and logged figures, for comparisons."""
        parts = [part.strip() for line in self.printed.splitlines() for part in line.split("\r")]
        return {_NUMBERS.sub("#", part) for part in parts if part and not _NOISE.search(part)}


def isolated(action: Callable[[], int], folder: Path) -> Ended:
    """Run an action in a forked process; return its status, its optimizer steps and what it printed."""
    log, steps = folder / "printed.log", folder / "steps"
    started = time.monotonic()
    child = os.fork()
    if not child:
        status = 1
        try:
            with log.open("ab", buffering=0) as printed, steps.open("ab", buffering=0) as counted:
                for descriptor in (1, 2):
                    os.dup2(printed.fileno(), descriptor)
                sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
                from torch.optim.optimizer import register_optimizer_step_post_hook

                register_optimizer_step_post_hook(lambda *_: counted.write(b"."))
                signal.alarm(SECONDS)
                try:
                    status = action()
                except SystemExit as ended:
                    status = ended.code if isinstance(ended.code, int) else 1
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(code)
    text = log.read_text(errors="replace").replace(str(folder), "FOLDER") if log.exists() else ""
    return Ended(status, steps.stat().st_size if steps.exists() else 0, text, time.monotonic() - started)


def ours(setup: Setup) -> int:
    """Run a stage of tristage on the setup; run it again after what happens later, if something does."""
    from tests.conftest import status_of

    sys.argv = [setup.stage, "--output", str(setup.folder / "out"), "--data", str(setup.data), *_flags(setup)]
    status = status_of(setup.stage)
    if setup.later and status == 0:
        setup.later(setup)
        status = status_of(setup.stage)
    return status


def _flags(setup: Setup) -> list[str]:
    values = {"max_length": LENGTH, "num_train_epochs": 1, "per_device_train_batch_size": 8} | setup.options
    if setup.stage == "finetune":
        values = {"task": "classification"} | values
    if setup.template:
        path = setup.folder / "template.jinja"
        path.write_text(setup.template)
        values["chat_template"] = str(path)
    parent = ["--parent", str(setup.model)] if setup.parent else []
    return [*parent, *(word for key, value in values.items() for word in (f"--{key}", _word(value)))]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Zoo:
    """The models that faults are planted into, and how the same trainings end without a fault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = folder / "models"
        self._clean: dict[tuple[str, str], Ended] = {}

    def build(self, encoder: bool = True) -> None:
        """Load the libraries, and train the small models in another process: the tokenizer's threads don't survive a fork."""
        import torch
        import transformers
        import trl

        torch.set_num_threads(1)
        for name in ("SFTTrainer", "DPOTrainer", "RewardTrainer", "KTOTrainer"):
            getattr(trl, name)
        assert transformers.Trainer
        ended = isolated(lambda: self._train(encoder), self.folder)
        if ended.status:
            raise RuntimeError(f"the models of the zoo were not made: {ended.printed[-2000:]}")

    def _train(self, encoder: bool) -> int:
        """Train a base, a chat model on it that learned its answers, and an encoder."""
        from tests.conftest import make_quietly
        from tests.test_tasks import parent
        from tests.zoo import ROWS

        for stage, epochs, rate in (("pretrain", 6, 1e-2), ("sft", 6, 1e-2)):
            given = Setup(self.folder / f"data-{stage}", self.models, stage, rows=ROWS[stage])
            given.folder.mkdir()
            options = OPTIONS[stage] | {"learning_rate": rate, "num_train_epochs": epochs, "max_length": LENGTH}
            options |= {"per_device_train_batch_size": 8}
            if stage == "sft":
                options |= {"chat_template": "chatml.jinja", "method": "full"}
            where = ["--parent", self.models / "pretrain"] if stage == "sft" else []
            flags = [word for key, value in options.items() for word in (f"--{key}", _word(value))]
            make_quietly(stage, *where, "--output", self.models / stage, "--data", given.data, *flags)
        if encoder:
            parent(self.models / "encoder", "mlm")
        return 0

    def run(self, case: Case, how: Callable[[Setup], int]) -> Ended:
        """Plant a case into one of the two ways to train, in a folder that is then removed."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            return isolated(lambda: how(case.setup(folder, self.models)), folder)
        finally:
            shutil.rmtree(folder)

    def clean(self, case: Case, how: Callable[[Setup], int]) -> Ended:
        """Return how the training of a case ends without its fault."""
        key = case.stage, how.__module__
        if key not in self._clean:
            sound = Case("sound", "", "", case.stage, lambda _: None, parent=PARENT[case.stage])
            self._clean[key] = ended = self.run(sound, how)
            if ended.status:
                raise RuntimeError(f"without a fault {case.stage} does not train by {key[1]}: {ended.printed[-2000:]}")
        return self._clean[key]


def verdict(case: Case, ended: Ended, sound: Ended) -> str:
    """Say how tristage met a fault; a stop or a warning counts only where it tells that fault.

    A line that the sound training prints, too, tells nothing.
    """
    usual = sound.lines()
    told = any(
        re.search(case.says, line) for line in ended.printed.splitlines() if _NUMBERS.sub("#", line.strip()) not in usual
    )
    if ended.status != 0 and told:
        return LATE if ended.steps else EARLY
    return WARNED if told else SILENT


def verdict_plain(case: Case, ended: Ended, sound: Ended) -> str:
    """Say how a plain script met a fault: any stop counts, and any line that the sound script does not print."""
    if ended.status != 0:
        return LATE if ended.steps else EARLY
    return WARNED if ended.lines() - sound.lines() else SILENT


def alarm(case: Case, ended: Ended, warnings: Collection[str]) -> str:
    """Return what a correct setup was refused or warned with; empty where it simply trained. Rows that are counted as left out are no warning."""
    if ended.status != 0:
        return next((line for line in reversed(ended.printed.splitlines()) if line.strip()), f"status {ended.status}")
    lines = [line for line in ended.printed.splitlines() if "; dropped: " not in line]
    return next((line for line in lines if any(re.search(says, line) for says in warnings)), "")


def cases() -> tuple[list[Case], list[Case]]:
    """Return all faults and all correct setups."""
    import importlib
    import pkgutil

    from tests.zoo import faults

    for module in sorted(pkgutil.iter_modules(faults.__path__), key=lambda one: one.name):
        importlib.import_module(f"tests.zoo.faults.{module.name}")
    importlib.import_module("tests.zoo.correct")
    return FAULTS, CORRECT

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
SECONDS, PATIENCE = 90, 900  # of the processor, and by the clock, after which a setup is ended and counts as silent
LENGTH = 64
ROLE = {"distill": "teacher"}  # of the model that faults are planted into, where it is no parent
LACKS = {
    "rlhf": ("max_length",),
    "self_train": ("max_length", "num_train_epochs"),
    "pairs": ("max_length", "num_train_epochs", "per_device_train_batch_size"),
}
OTHERS = {"gpt2": "gpt2", "qwen3": "qwen3"}  # chat models of other architectures
PARENTS = {
    "encoder": ("mlm", "bert"),
    "t5": ("span_corruption", "t5"),
    "roberta": ("mlm", "roberta"),
    "electra": ("rtd", "electra"),
    "bart": ("denoising", "bart"),
    "embedder": ("contrastive", "bert"),
}
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
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                signal.alarm(PATIENCE)
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
    import datasets
    import transformers

    from tests.conftest import status_of

    transformers.logging.set_verbosity_error()  # as a stage's own process has it; plain scripts talk more in this one
    datasets.logging.set_verbosity_error()
    sys.argv = [setup.stage, "--output", str(setup.folder / "out"), "--data", str(setup.data), *_flags(setup)]
    status = status_of(setup.stage)
    if setup.later and status == 0:
        setup.later(setup)
        status = status_of(setup.stage)
    return status


def _flags(setup: Setup) -> list[str]:
    usual = {"max_length": LENGTH, "num_train_epochs": 1, "per_device_train_batch_size": 8}
    usual = {key: value for key, value in usual.items() if key not in LACKS.get(setup.stage, ())}
    values = usual | ({"task": "classification"} if setup.stage == "finetune" else {}) | setup.options
    if setup.template:
        path = setup.folder / "template.jinja"
        path.write_text(setup.template)
        values["chat_template"] = str(path)
    parent = [f"--{ROLE.get(setup.stage, 'parent')}", str(setup.model)] if setup.parent else []
    return [*parent, *(word for key, value in values.items() for word in (f"--{key}", _word(value)))]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Zoo:
    """The models that faults are planted into, and how the same trainings end without a fault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = folder / "models"
        self._clean: dict[tuple[object, ...], Ended] = {}

    def build(self, all_models: bool = True) -> None:
        """Load the libraries, and train the small models in another process: the tokenizer's threads don't survive a fork."""
        import torch
        import transformers
        import trl

        torch.set_num_threads(1)
        for name in ("SFTTrainer", "DPOTrainer", "RewardTrainer", "KTOTrainer", "RLOOTrainer"):
            getattr(trl, name)
        assert transformers.Trainer
        ended = isolated(lambda: self._train(all_models), self.folder)
        if ended.status:
            raise RuntimeError(f"the models of the zoo were not made: {ended.printed[-2000:]}")

    def _train(self, all_models: bool) -> int:
        """Train a base, and a chat model on it that learned its answers; of other architectures, too, with some models of other families."""
        from tests.conftest import make_quietly
        from tests.test_tasks import parent
        from tests.zoo import ROWS

        def made(stage: str, name: str, *where: object, **more: object) -> None:
            given = Setup(self.folder / f"data-{name}", self.models, stage, rows=ROWS[stage])
            given.folder.mkdir()
            options = OPTIONS[stage] | {"learning_rate": 1e-2, "num_train_epochs": 6, "max_length": LENGTH}
            options |= {"per_device_train_batch_size": 8} | more
            flags = [word for key, value in options.items() for word in (f"--{key}", _word(value))]
            make_quietly(stage, *where, "--output", self.models / name, "--data", given.data, *flags)

        chat = {"chat_template": "chatml.jinja", "method": "full"}
        made("pretrain", "pretrain")
        made("sft", "sft", "--parent", self.models / "pretrain", **chat)
        if all_models:
            for name, architecture in OTHERS.items():
                made("pretrain", f"{name}-base", architecture=architecture)
                made("sft", name, "--parent", self.models / f"{name}-base", **chat)
            for name, (objective, architecture) in PARENTS.items():
                if objective == "contrastive":  # the one of which it can't be asked whether it knows its tokens
                    parent(self.models / name, objective, architecture)
                else:
                    made("pretrain", name, objective=objective, architecture=architecture)
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
        key = case.stage, case.sound, how.__module__
        if key not in self._clean:
            sound = Case("sound", "", "", case.stage, case.sound or (lambda _: None), parent=PARENT[case.stage])
            self._clean[key] = ended = self.run(sound, how)
            if ended.status:
                raise RuntimeError(f"without a fault {case.stage} does not train by {key[2]}: {ended.printed[-2000:]}")
        return self._clean[key]


def telling(case: Case, ended: Ended, sound: Ended) -> str:
    """Return the line that tells a fault; empty where none does. One that the sound training prints, too, tells nothing."""
    usual = sound.lines()
    lines = (line for line in ended.printed.splitlines() if _NUMBERS.sub("#", line.strip()) not in usual)
    return next((line for line in lines if re.search(case.says, line)), "")


def verdict(case: Case, ended: Ended, sound: Ended) -> str:
    """Say how tristage met a fault; a stop or a warning counts only where it tells that fault."""
    told = telling(case, ended, sound)
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

    from tests.zoo import faults, right

    for package in (faults, right):
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda one: one.name):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return FAULTS, CORRECT

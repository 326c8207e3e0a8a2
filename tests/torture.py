"""Kill stages at random moments, let the same command run again, and compare what they end with.

    python tests/torture.py 100

One uninterrupted chain is the measure. Each kill then starts one stage anew on the same parent, waits
for a file or a line of output to appear, waits a random part of the time that this phase takes, and
sends SIGKILL to the whole process group. What is left on disk tells whether the phase was hit; if not,
the try is repeated and counted as a miss. Nothing in pipeline/ knows of this.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import ROOT
from pipeline.chain import manifest, resume
from pipeline.system import hashes

FAMILIES = ["mlm", "rtd", "span_corruption", "contrastive", "skipgram"]  # an objective of each beside the causal one
STEPS = {"pretrain": 24, "sft": 16, "dpo": 12} | dict.fromkeys(FAMILIES, 24)
SAVE = 4  # steps between checkpoints
COMMON = ["--save_steps", str(SAVE), "--logging_steps", "2", "--max_length", "128"]
FLAGS = {
    "pretrain": ["--hidden_size", "64", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--vocab_size", "600",
                 "--per_device_train_batch_size", "8", "--learning_rate", "1e-3", *COMMON],
    "sft": ["--chat_template", "chatml.jinja", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2",
            "--lr_scheduler_type", "constant", *COMMON],
    "dpo": ["--per_device_train_batch_size", "4", *COMMON],
    "eval": ["--rows", "60", "--pairs", "60", "--resamples", "100", "--max_new_tokens", "16"],
}  # fmt: skip
FLAGS |= {name: [*FLAGS["pretrain"], "--objective", name] for name in FAMILIES}
SHAPES = {"pretrain": "text", "sft": "messages", "dpo": "preference"} | dict.fromkeys(FAMILIES, "text")
SCRIPTS = dict.fromkeys(FAMILIES, "pretrain")
PARENTS = {"sft": "pretrain", "dpo": "sft"}
TRIES = 16  # until a phase is hit


class Attempt:
    """One process of a stage, watched from outside."""

    def __init__(self, name: str, where: Path, reference: Path) -> None:
        self.name, self.folder = name, where / name
        parents = ["pretrain", "sft", "dpo"] if name == "eval" else [PARENTS[name]] if name in PARENTS else []
        flags = [word for parent in parents for word in ("--parent", str(reference / parent))]
        if name in SHAPES:
            flags += ["--data", str(reference / f"{SHAPES[name]}.jsonl"), "--max_steps", str(STEPS[name])]
        output = where / "evaluate.json" if name == "eval" else self.folder
        self.command = [
            sys.executable,
            str(ROOT / "stages" / f"{SCRIPTS.get(name, name)}.py"),
            *flags,
            "--output",
            str(output),
            *FLAGS[name],
        ]
        where.mkdir(parents=True, exist_ok=True)
        self.told = where / f"{name}.out"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self.told.open("w") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self.started = time.perf_counter()

    def has(self, pattern: str) -> bool:
        """Say whether a file is there."""
        return any(True for _ in self.folder.glob(pattern))

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

    def saving(self) -> bool:
        """Say whether a checkpoint is there without its seal."""
        return any(not (path / resume.SEAL).exists() for path in self.folder.glob("checkpoint-*"))

    def trained(self) -> bool:
        """Say whether the last checkpoint is sealed, or gone already."""
        last = self.folder / f"checkpoint-{STEPS[self.name]}" / resume.SEAL
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
# Phase: the stages that have it, whether it has begun, whether it is over.
PHASES: dict[str, tuple[list[str], State, State]] = {
    "data preparation": (
        ["pretrain", "sft", "dpo", *FAMILIES],
        lambda a: a.has(".data/train.arrow"),
        lambda a: a.said("dropped:"),
    ),
    "tokenizer": (["pretrain", *FAMILIES], lambda a: a.said("trains a tokenizer"), lambda a: a.has(".data/train.arrow")),
    "steps": (["pretrain", *FAMILIES, "sft", "dpo"], lambda a: a.logged() > 0, lambda a: a.saving() or a.logged() >= STEPS[a.name]),
    "checkpoint save": (["sft", "pretrain", *FAMILIES, "dpo"], lambda a: a.saving(), lambda a: not a.saving()),
    "merging": (["sft", "dpo"], lambda a: a.trained(), lambda a: a.has(".result/model.safetensors") or a.has("model.safetensors")),
    "manifest": (["dpo", *FAMILIES, "pretrain", "sft"], lambda a: a.has(".result/model.safetensors") or a.has("model.safetensors"), lambda a: a.has(manifest.NAME) and not a.has("claim.json")),
    "evaluation": (["eval"], lambda a: a.said("measures"), lambda a: (a.folder.parent / "evaluate.json").exists()),
}  # fmt: skip


def wait(attempt: Attempt, state: State) -> bool:
    """Wait until a state is reached; False where the process ended before."""
    while not state(attempt):
        if not attempt.alive():
            return state(attempt)
        time.sleep(0.0005)
    return True


def measure(name: str, where: Path, reference: Path) -> dict[str, float]:
    """Run a stage to its end and return how many seconds each of its phases takes, the longest of its kind."""
    attempt = Attempt(name, where, reference)
    seconds: dict[str, float] = {}
    begun: dict[str, float] = {}
    while attempt.alive():
        for phase, (stages, begins, ends) in PHASES.items():
            if name in stages:
                now = time.perf_counter()
                if begins(attempt) and not ends(attempt):
                    begun.setdefault(phase, now)
                elif phase in begun:
                    seconds[phase] = max(seconds.get(phase, 0.0), now - begun.pop(phase))
        time.sleep(0.0005)
    if attempt.process.returncode:
        raise SystemExit(attempt.told.read_text())
    now = time.perf_counter()
    return seconds | {phase: max(seconds.get(phase, 0.0), now - start) for phase, start in begun.items()}


def strike(phase: str, name: str, window: float, where: Path, reference: Path, chance: random.Random) -> bool:
    """Start a stage and kill it within a phase; say whether what is left on disk shows that it was hit."""
    _, begins, ends = PHASES[phase]
    shutil.rmtree(where, ignore_errors=True)
    attempt = Attempt(name, where, reference)
    skip = chance.randrange(3) if phase in ("steps", "checkpoint save") else 0  # not always the first of its kind
    delay = chance.uniform(0, window)
    reached = wait(attempt, begins)
    for _ in range(skip):
        reached = reached and wait(attempt, ends) and wait(attempt, lambda a: begins(a) and not ends(a))
    until = time.perf_counter() + delay
    while time.perf_counter() < until and attempt.alive():
        time.sleep(min(0.0005, delay))
    running = attempt.alive()
    attempt.kill()
    return reached and running and begins(attempt) and not ends(attempt)


def figures(folder: Path) -> list[list[float]]:
    """Return the trainer's log without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [[line[key] for key in ("step", "tokens", "loss", "grad_norm", "learning_rate")] for line in lines]


def missing_checkpoint(folder: Path, name: str) -> str:
    """Return which checkpoint should be there, by the log, and is not; an empty string if there is none or all is well."""
    try:
        logged = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, json.JSONDecodeError):
        return ""
    due = STEPS[name] if (folder / ".result").exists() else (logged - 1) // SAVE * SAVE
    sealed = [int(path.parent.name.split("-")[1]) for path in folder.glob(f"checkpoint-*/{resume.SEAL}")]
    if due and not (folder / manifest.NAME).exists() and max(sealed, default=0) < due:
        return f"lost work: checkpoint-{due} was due, found {sealed}"
    return ""


def survives(name: str, where: Path, reference: Path) -> str:
    """Run the same command again; return what is not as in the uninterrupted run, or an empty string."""
    lost = missing_checkpoint(where / name, name)
    sealed = [int(path.parent.name.split("-")[1]) for path in (where / name).glob(f"checkpoint-*/{resume.SEAL}")]
    attempt = Attempt(name, where, reference)
    if attempt.process.wait():
        return f"ended with {attempt.process.returncode}: {attempt.told.read_text()[-400:]}"
    if lost:
        return lost
    if name == "eval":
        expected = json.loads((reference / "evaluate.json").read_text())
        return "" if json.loads((where / "evaluate.json").read_text()) == expected else "other figures"
    if hashes.read(where / name / "model.safetensors") != hashes.read(reference / name / "model.safetensors"):
        return "other weights"
    if (manifest.read(where / name) or {})["outputs"] != (manifest.read(reference / name) or {})["outputs"]:
        return "other files"
    if figures(where / name) != figures(reference / name):
        return f"another log: {figures(where / name)[-2:]}"
    if sealed and not attempt.said(f"goes on from checkpoint-{max(sealed)}") and not attempt.said("up to date"):
        return f"did not go on from checkpoint-{max(sealed)}"
    return "" if not attempt.has("checkpoint-*") and not attempt.has("claim.json") else "left something behind"


def main() -> int:
    """Kill as often as asked and print what became of it."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference"
        reference.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        from pipeline.data import recipe

        for shape in sorted(set(SHAPES.values())):
            rows = recipe.load("world").rows(shape, "train", 42).kept[:3000]
            (reference / f"{shape}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        windows = {name: measure(name, reference, reference) for name in FLAGS}
        print(f"uninterrupted chain in {time.time() - began:.0f} s; seconds of each phase:")
        for name, seconds in windows.items():
            print(f"  {name:<9} " + ", ".join(f"{phase} {found:.3f}" for phase, found in seconds.items()), flush=True)
        plan = list(itertools.islice(itertools.cycle(PHASES), kills))
        turns = {phase: itertools.cycle(stages) for phase, (stages, _, _) in PHASES.items()}
        misses: Counter[str] = Counter()

        def one(number: int, phase: str, name: str) -> tuple[str, str]:
            where, chance = Path(folder) / f"kill{number}", random.Random(number)
            for attempt in range(TRIES):
                window = windows[name].get(phase, 0.01) * 0.8**attempt  # it was measured on a machine less busy, or more
                if strike(phase, name, window, where, reference, chance):
                    wrong = survives(name, where, reference)
                    break
                misses[phase] += 1
            else:
                wrong = f"not hit in {TRIES} tries"
            shutil.rmtree(where, ignore_errors=True)
            print(f"  {number + 1:>3}  {phase:<17} {name:<9} {wrong or 'the same weights'}", flush=True)
            return phase, wrong

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(one, number, phase, next(turns[phase])) for number, phase in enumerate(plan)]
            results = [job.result() for job in jobs]
    hit, well = Counter(phase for phase, _ in results), Counter(phase for phase, wrong in results if not wrong)
    print(f"{'phase':<18}{'kills':>6}{'survived':>10}{'misses':>8}")
    for phase in PHASES:
        print(f"{phase:<18}{hit[phase]:>6}{well[phase]:>10}{misses[phase]:>8}")
    print(
        f"{well.total()} of {kills} killed stages ended with the weights of the uninterrupted run ({time.time() - began:.0f} s)"
    )
    return int(well.total() < kills)


if __name__ == "__main__":
    sys.exit(main())

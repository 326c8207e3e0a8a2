"""Kill nodes at random moments, let the same command run again, and compare what they end with.

    python -m tests.torture 100 [NODE ...]

One uninterrupted chain is the measure: the nodes of a small profile, among them one of each family, some of two
parents, and three that read pictures. Each kill then starts one node anew on the same parents, waits for a file or a line of output to appear, waits
a random part of the time that this phase takes, and sends SIGKILL to the whole process group. What is left on disk
tells whether the phase was hit; if not, the try is repeated and counted as a miss. Nothing in pipeline/ knows of this,
and which phases a node has is read from what its stage declares.
"""

from __future__ import annotations

import contextlib
import importlib
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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.chain import finished, manifest, profile, resume, stages
from pipeline.chain.profile import Node
from pipeline.chain.stage import PARENT, ROWS
from pipeline.data import recipe
from pipeline.system import hashes
from pipeline.training.adapter import AdapterOptions
from pipeline.training.answers import Sampled
from tests import checkout

SAVE = 4  # steps between checkpoints
SAVES = f"save_steps: {SAVE}\nlogging_steps: 2\n"
SIZES = (
    "hidden_size: 64\nnum_hidden_layers: 2\nnum_attention_heads: 2\nvocab_size: 600\nmax_length: 128\n"
    f"per_device_train_batch_size: 8\nlearning_rate: 1e-3\nmax_steps: 24\n{SAVES}"
)
SHORT = f"parent: sft\nper_device_train_batch_size: 4\nmax_length: 128\nmax_steps: 12\n{SAVES}"
SCORED = "parent: sft\nrewards: {regex: {pattern: e}}\n"  # a model that learned for a few steps gets nothing else right
NODES = {
    "pretrain": SIZES,
    "stream": f"stage: pretrain\nrecipe: data/stream.yaml\n{SIZES}",
    "mlm": f"stage: pretrain\nobjective: mlm\n{SIZES}",
    "rtd": f"stage: pretrain\nobjective: rtd\n{SIZES}",
    "spans": f"stage: pretrain\nobjective: span_corruption\n{SIZES}",
    "vectors": f"stage: pretrain\nobjective: contrastive\n{SIZES}",
    "words": f"stage: pretrain\nobjective: skipgram\n{SIZES}",
    "imitate": f"parent: pretrain\nteacher: mlm\nmax_length: 128\nper_device_train_batch_size: 4\nmax_steps: 16\n{SAVES}",
    "sft": "parent: imitate\nchat_template: chatml.jinja\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 2\n"
           f"lr_scheduler_type: constant\nmax_length: 128\nmax_steps: 16\n{SAVES}",
    "clip": f"stage: pretrain\nrecipe: scenes\nobjective: clip\nobjective_options: {{image_size: 32, patch_size: 16}}\n{SIZES}",
    "see": "stage: sft\nrecipe: scenes\nparent: pretrain\nvision: clip\ntower: frozen\nchat_template: chatml.jinja\n"
           f"per_device_train_batch_size: 4\nmax_length: 128\nmax_steps: 16\n{SAVES}",
    "cross": "stage: sft\nrecipe: scenes\nparent: pretrain\nvision: clip\ntower: frozen\nmethod: cross_attention\nresampler_n_latents: 4\n"
             f"resampler_depth: 1\nchat_template: chatml.jinja\nper_device_train_batch_size: 4\nmax_length: 128\nmax_steps: 16\n{SAVES}",
    "dpo": f"release: yes\n{SHORT}",
    "distill": f"parent: imitate\nteacher: pretrain\nmethod: lora\nper_device_train_batch_size: 4\nmax_length: 128\nmax_steps: 12\n{SAVES}",
    "distill-chat": "parent: sft\nteacher: dpo\nreads: prompts\nmethod: lora\nmax_completion_length: 8\nmax_length: 128\n"
                    f"per_device_train_batch_size: 4\nmax_steps: 12\n{SAVES}",
    "kto": SHORT,
    "reward": SHORT,
    "rlhf": "parent: sft\nreward: reward\nrewards: {model: 1, regex: {pattern: e}}\nmax_completion_length: 12\n"
            f"num_generations: 4\nper_device_train_batch_size: 16\nmax_steps: 12\n{SAVES}",
    "pairs": f"{SCORED}max_new_tokens: 24\nprompts: 256\n",
    "selftrain": f"stage: self_train\n{SCORED}max_new_tokens: 24\nprompts: 192\nrounds: 2\nper_device_train_batch_size: 4\nmax_steps: 16\n{SAVES}",
}  # fmt: skip
# A recipe of which nothing is kept: lines and row groups, each with its share; a chunk lasts for a few steps.
STREAM = "type: text\nstream: yes\nsources:\n  - files: data/lines.jsonl\n    share: 0.7\n  - files: data/groups.parquet\n    share: 0.3\n"
EVALUATE = "evaluate"  # no node, but killed like one: it measures what the released node descends from
MEASURED = ["--rows", "60", "--resamples", "100", "--max_new_tokens", "16"]
WORLD, PICTURED = (
    "world",
    "image_text",
)  # the recipe of texts; the type of all rows with pictures: a caption is a conversation, too
COUNTS = {WORLD: 3000, "scenes": 300}  # recipe → rows of each type; a picture takes as long as many texts
TRIES = 16  # until a phase is hit


@dataclass
class House:
    """A copy of the checkout with the profile, and the folder of the uninterrupted chain."""

    checkout: Path
    nodes: dict[str, Node]
    reference: Path

    @property
    def data(self) -> Path:
        """Where the rows lie, a file for each recipe and dataset type."""
        return self.checkout / "data"

    def rows(self, name: str) -> tuple[str, str] | None:
        """Return recipe and dataset type of the rows that a node reads from a file; None where it reads none."""
        node = self.nodes[name]
        if not node.signature or not node.signature.reads or self.streams(name):
            return None
        found = str(node.settings.get("recipe", WORLD))
        return found, node.signature.reads if found == WORLD else PICTURED

    @property
    def lineage(self) -> Path:
        """The nodes that the released one descends from, which are evaluated."""
        return self.reference.parent / "lineage"

    def command(self, name: str, where: Path) -> list[str]:
        """Return the command that makes a node, or the evaluation, in a folder."""
        if name == EVALUATE:
            words = [
                "-m",
                f"pipeline.commands.{EVALUATE}",
                "--runs",
                str(self.lineage),
                "--output",
                str(where / "evaluate.json"),
            ]
            return [sys.executable, *words, *MEASURED]
        node = self.nodes[name]
        words = [str(node.stage.script), "--config", str(node.file), "--output", str(where / name)]
        for role, parent in node.parents.items():
            words += [f"--{role}", str(self.reference / parent)]
        if rows := self.rows(name):
            words += ["--data", str(self.data / f"{'-'.join(rows)}.jsonl")]
        return [sys.executable, *words]

    def streams(self, name: str) -> bool:
        """Say whether a node reads its rows while it trains."""
        return str(self.nodes[name].settings.get("recipe", "")).endswith("stream.yaml")

    def steps(self, name: str) -> int:
        """Return how many steps a node takes; 0 where it trains nothing."""
        return int(self.nodes[name].settings.get("max_steps", 0))

    def rounds(self, name: str) -> int:
        """Return how often a node samples."""
        return int(self.nodes[name].settings.get("rounds", 1))

    def having(self, phase: str) -> list[str]:
        """Return the nodes that have a phase, by what their stages declare."""
        if phase == EVALUATE:
            return [EVALUATE]
        wanted: dict[str, Callable[[Node], bool]] = {
            "data preparation": lambda node: trains(node) and self.rows(node.name) is not None,
            "tokenizer": lambda node: PARENT not in node.parents,
            "sampling": lambda node: issubclass(node.stage.Options, Sampled),
            "merging": lambda node: issubclass(node.stage.Options, AdapterOptions),
            "manifest": lambda node: True,
        }
        has = wanted.get(phase, trains)
        return [name for name, node in self.nodes.items() if has(node)]


def trains(node: Node) -> bool:
    """Say whether a node hands on a model and no rows."""
    return bool(node.signature and node.signature.gives != ROWS)


def built(folder: Path, names: Sequence[str]) -> House:
    """Copy the checkout, add the profile and rows of each type that its nodes read.

    `names`: the nodes that are wanted, with what they descend from; none: all.
    """
    copy = checkout.copied(folder / "checkout")
    stages.FOLDER = copy / "stages"  # of the copy, since it has more of them
    nodes = profile.load(checkout.write_profile(copy, "torture", **NODES)).nodes
    house = House(copy, descent(nodes, names or nodes), folder / "reference")
    house.data.mkdir()
    for name, kind in sorted({rows for rows in map(house.rows, house.nodes) if rows}):
        made = getattr(importlib.import_module(f"data_recipes.{name}"), kind)("train", 42)
        rows = itertools.islice(made, COUNTS[name])
        (house.data / f"{name}-{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if any(map(house.streams, house.nodes)):
        write_stream(house.data)
    return house


def descent(nodes: dict[str, Node], names: Iterable[str]) -> dict[str, Node]:
    """Return the nodes of these names, and all that they descend from, parents first."""
    needed = set(names)
    if EVALUATE in needed:
        needed |= {name for name, node in nodes.items() if node.released}
    for name in reversed(nodes):
        needed |= set(nodes[name].parents.values()) if name in needed else set()
    return {name: node for name, node in nodes.items() if name in needed}


def write_stream(folder: Path) -> None:
    """Write the streamed recipe and its sources."""
    import pyarrow
    import pyarrow.parquet

    rows = list(recipe.load("world").rows("text", "train", 42).kept[:3000])
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2000]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[2000:]), folder / "groups.parquet", row_group_size=100)
    (folder / "stream.yaml").write_text(STREAM)


def _holds(folder: Path, pattern: str) -> bool:
    """Say whether a file is there; one whose folder goes or is renamed while it is looked for is not, until the next look."""
    try:
        return any(True for _ in folder.glob(pattern))
    except FileNotFoundError:
        return False


class Attempt:
    """One process of a node, watched from outside."""

    def __init__(self, house: House, name: str, where: Path) -> None:
        self.house, self.name, self.folder = house, name, where / name
        where.mkdir(parents=True, exist_ok=True)
        self.told = where / f"{name}.out"
        with self.told.open("w") as out:
            self.process = subprocess.Popen(
                house.command(name, where), stdout=out, stderr=subprocess.STDOUT, cwd=house.checkout,
                env=checkout.environment(house.checkout) | {"CACHE": str(where / f"cache-{name}")}, start_new_session=True,
            )  # fmt: skip
        self.started = time.perf_counter()

    @property
    def steps(self) -> int:
        """How many steps the node takes."""
        return self.house.steps(self.name)

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
        return len(rounds) > 0 and self.logged() <= (len(rounds) - 1) * self.steps // self.house.rounds(self.name)

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


def measure(house: House, name: str, where: Path) -> dict[str, float]:
    """Run a node to its end and return how many seconds each of its phases takes, the longest of its kind."""
    attempt = Attempt(house, name, where)
    phases = {phase: states for phase, states in PHASES.items() if name in house.having(phase)}
    seconds: dict[str, float] = {}
    begun: dict[str, float] = {}
    while attempt.alive():
        for phase, (begins, ends) in phases.items():
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


def strike(house: House, phase: str, name: str, window: float, where: Path, rng: random.Random) -> bool:
    """Start a node and kill it within a phase; say whether what is left on disk shows that it was hit."""
    begins, ends = PHASES[phase]
    shutil.rmtree(where, ignore_errors=True)
    attempt = Attempt(house, name, where)
    kinds = {"steps": 3, "checkpoint save": 3, "sampling": house.rounds(name) if name != EVALUATE else 1}
    skip = rng.randrange(kinds.get(phase, 1))  # not always the first of its kind
    delay = rng.uniform(0, window)
    reached = wait(attempt, begins)
    for _ in range(skip):
        reached = reached and wait(attempt, ends) and wait(attempt, lambda a: begins(a) and not ends(a))
    until = time.perf_counter() + delay
    while time.perf_counter() < until and attempt.alive():
        time.sleep(min(0.0005, delay))
    running = attempt.alive()
    attempt.kill()
    return reached and running and begins(attempt) and not ends(attempt)


def missing_checkpoint(folder: Path, steps: int) -> str:
    """Return which checkpoint should be there, by the log, and is not; an empty string if there is none or all is well."""
    try:
        logged = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, json.JSONDecodeError):
        return ""
    due = steps if (folder / ".result").exists() else (logged - 1) // SAVE * SAVE
    sealed = [int(path.parent.name.split("-")[1]) for path in folder.glob(f"checkpoint-*/{resume.SEAL}")]
    if due and not (folder / manifest.NAME).exists() and max(sealed, default=0) < due:
        return f"lost work: checkpoint-{due} was due, found {sealed}"
    return ""


def survives(house: House, name: str, where: Path) -> str:
    """Run the same command again; return what is not as in the uninterrupted run, or an empty string."""
    folder, whole = where / name, house.reference / name
    lost = missing_checkpoint(folder, house.steps(name)) if name != EVALUATE else ""
    sealed = [int(path.parent.name.split("-")[1]) for path in folder.glob(f"checkpoint-*/{resume.SEAL}")]
    attempt = Attempt(house, name, where)
    if attempt.process.wait():
        return f"ended with {attempt.process.returncode}: {attempt.told.read_text()[-400:]}"
    if lost:
        return lost
    if name == EVALUATE:
        expected = json.loads((house.reference / "evaluate.json").read_text())
        return differing(expected, json.loads((where / "evaluate.json").read_text()))
    for path in [*whole.glob("model.safetensors"), *whole.glob("*.parquet")]:
        if hashes.read(folder / path.name) != hashes.read(path):
            return f"another {path.name}"
    if (manifest.read(folder) or {})["outputs"] != (manifest.read(whole) or {})["outputs"]:
        return "other files"
    if checkout.logged(folder) != checkout.logged(whole):
        return f"another log: {checkout.logged(folder)[-2:]}"
    if sealed and not attempt.said(f"goes on from checkpoint-{max(sealed)}") and not attempt.said("up to date"):
        return f"did not go on from checkpoint-{max(sealed)}"
    return "" if not attempt.has("checkpoint-*") and not attempt.has(manifest.CLAIM) else "left something behind"


def differing(expected: object, found: object, place: str = "") -> str:
    """Return where two summaries first differ, with both values; an empty string where they are equal."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        told = expected.keys() - {"seconds"}  # by a clock
        return next(filter(None, (differing(expected[key], found[key], f"{place}/{key}") for key in sorted(told))), "")
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return next(
            filter(None, (differing(*both, f"{place}/{at}") for at, both in enumerate(zip(expected, found, strict=True)))), ""
        )
    return "" if expected == found else f"other figures: {place}: {str(expected)[:120]!r}, then {str(found)[:120]!r}"


def uninterrupted(house: House) -> dict[str, dict[str, float]]:
    """Make the nodes of the profile, parents first, and evaluate; return the seconds of each phase of each."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs: dict[str, Future[dict[str, float]]] = {}

        def one(name: str) -> dict[str, float]:
            for parent in house.nodes[name].parents.values():
                jobs[parent].result()  # which began before
            return measure(house, name, house.reference)

        for name in house.nodes:
            jobs[name] = pool.submit(one, name)
        windows = {name: job.result() for name, job in jobs.items()}
    released = next((name for name, node in house.nodes.items() if node.released), "")
    if not released:
        return windows
    for node in finished.lineage(house.reference / released):
        shutil.copytree(node.folder, house.lineage / node.name)
    return windows | {EVALUATE: measure(house, EVALUATE, house.reference)}


def shuffled(names: list[str], phase: str) -> list[str]:
    """Return names in an order that depends on the phase, so that a few kills meet many nodes."""
    return random.Random(phase).sample(names, len(names))


def main() -> int:
    """Kill as often as asked and print what became of it."""
    kills, names = int(sys.argv[1]) if len(sys.argv) > 1 else 100, sys.argv[2:]
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        house = built(Path(folder), names)
        killed = {phase: [name for name in house.having(phase) if not names or name in names] for phase in PHASES}
        phases = [phase for phase, having in killed.items() if having]
        turns = {phase: itertools.cycle(shuffled(killed[phase], phase)) for phase in phases}
        plan = [(phase, next(turns[phase])) for phase in itertools.islice(itertools.cycle(phases), kills)]
        house.nodes = descent(house.nodes, {name for _, name in plan})
        windows = uninterrupted(house)
        print(f"uninterrupted chain in {time.time() - began:.0f} s; seconds of each phase:")
        for name, seconds in windows.items():
            print(f"  {name:<10} " + ", ".join(f"{phase} {found:.3f}" for phase, found in seconds.items()), flush=True)
        misses: Counter[str] = Counter()

        def one(number: int, phase: str, name: str) -> tuple[str, str]:
            where, rng = Path(folder) / f"kill{number}", random.Random(number)
            for attempt in range(TRIES):
                window = windows[name].get(phase, 0.01) * 0.8**attempt  # it was measured on a machine less busy, or more
                if strike(house, phase, name, window, where, rng):
                    wrong = survives(house, name, where)
                    break
                misses[phase] += 1
            else:
                wrong = f"not hit in {TRIES} tries"
            shutil.rmtree(where, ignore_errors=True)
            print(f"  {number + 1:>3}  {phase:<17} {name:<10} {wrong or 'the same'}", flush=True)
            return phase, wrong

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(one, number, phase, name) for number, (phase, name) in enumerate(plan)]
            results = [job.result() for job in jobs]
    hit, well = Counter(phase for phase, _ in results), Counter(phase for phase, wrong in results if not wrong)
    print(f"{'phase':<18}{'kills':>6}{'survived':>10}{'misses':>8}")
    for phase in phases:
        print(f"{phase:<18}{hit[phase]:>6}{well[phase]:>10}{misses[phase]:>8}")
    print(
        f"{well.total()} of {kills} killed nodes ended with what the uninterrupted run ended with ({time.time() - began:.0f} s)"
    )
    return int(well.total() < kills)


if __name__ == "__main__":
    sys.exit(main())

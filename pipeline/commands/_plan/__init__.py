"""What each node of a profile will take: its own trainer looked at for a few steps in a scratch folder, parents first."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, profile
from pipeline.chain.profile import Node
from pipeline.chain.stage import DATA, ROWS
from pipeline.commands._forked import forked, load_libraries
from pipeline.commands._plan import sketch
from pipeline.commands._plan.devices import UTILISATION, Machine
from pipeline.system import config, hardware, memory

_PROMPTS = 32  # that are answered where a node samples what it learns from in rounds; the run answers all
STEPS, SECONDS = 20, 60.0  # that are taken of each node on this machine, and the time after which no further one is begun
CONTEXT, FRAGMENTS = 0.6e9, 1.1  # of an accelerator: bytes of its driver's context, and what its allocator holds beyond tensors
_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "others")
_SEEN = 2000  # last characters of what a run printed, for the reason of a failure


@dataclasses.dataclass
class Planned:
    """One node: what was found out about it, or why nothing was."""

    name: str
    kind: str
    why: str = ""  # nothing was found out
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    peak: float = 0.0  # bytes of memory, of one device
    room: float = 0.0
    seconds: float = 0.0
    disk: int = 0  # bytes of checkpoints and the model
    ways: list[tuple[str, float]] = dataclasses.field(default_factory=list)  # change → the peak that it would have

    @property
    def fits(self) -> bool:
        """Whether it fits into the memory of the machine."""
        return self.peak <= self.room

    def record(self, machine: Machine) -> dict[str, Any]:
        """Return it as a JSON value."""
        if self.why:
            return {"node": self.name, "stage": self.kind, "why": self.why}
        return {
            "node": self.name, "stage": self.kind, **{key: self.found.get(key) for key in ("trained", "frozen", "tokens", "steps", "flops", "memory")},
            "peak_memory": self.peak, "room": self.room, "fits": self.fits, "disk": self.disk,
            "seconds": None if math.isnan(self.seconds) else self.seconds, "kwh": energy(machine, self.seconds),
            "dollars": cost(machine, self.seconds), "would_fit": [{"change": change, "peak_memory": peak} for change, peak in self.ways],
        }  # fmt: skip


def energy(machine: Machine, seconds: float) -> float | None:
    """Return kilowatt-hours at the machine's full power; None where that or the time is not known."""
    return None if machine.watts is None or math.isnan(seconds) else machine.watts * machine.count * seconds / 3.6e6


def cost(machine: Machine, seconds: float) -> float | None:
    """Return dollars; None where nobody charges any, or the price or the time is not known."""
    return None if machine.price is None or math.isnan(seconds) else machine.price * machine.count * seconds / 3600


class Planner:
    """The nodes of a profile in a scratch folder, each looked at on what the ones before it hand on."""

    def __init__(
        self, whole: profile.Profile, runs: Path, scratch: Path, machine: Machine, utilisation: float = UTILISATION
    ) -> None:
        self.whole, self.runs, self.scratch, self.machine, self.utilisation = whole, runs, scratch, machine, utilisation
        self.host = hardware.host_room()
        self.sketched: set[str] = set()  # nodes that handed nothing on, since their parent can't be loaded here

    def planned(self) -> Iterator[Planned]:
        """Yield what there is to say about each node, parents first."""
        nodes = self.whole.nodes.values()
        load_libraries((node.stage.library_of(node.settings) for node in nodes), "pipeline.training.planned")
        for node in self.whole.nodes.values():
            yield self.of(node)

    def of(self, node: Node) -> Planned:
        """Look at one node."""
        found = Planned(node.name, node.kind)
        missing = [name for name in node.parents.values() if name in self.whole.nodes and self.place(name) is None]
        if node.signature is None:
            found.why = "its options are at fault; `make check` names the faults"
        elif missing:
            found.why = _reason(missing, self.sketched)
        elif node.signature.gives == ROWS:
            found.why = f"{node.kind} hands on rows and trains no model; its time and memory are not told"
        else:
            self._look(node, found)
        return found

    def place(self, name: str) -> Path | None:
        """Return where a parent lies: what was handed on in the scratch folder, or the finished node; None where there is neither."""
        for folder in (self.scratch / "whole" / name, self.runs / name):
            if manifest.read(folder) is not None:
                return folder
        return None

    def _look(self, node: Node, found: Planned) -> None:
        """Fill in what a node's own trainer says, and what would make it fit."""
        said, answer = self.run(node, "whole")
        if "sketched" in (answer or {}):
            self.sketched.add(node.name)
        if answer is None:
            found.why = said or "it trains no model by gradient descent"
            return
        found.found, found.room = answer, self.machine.memory
        found.peak = self.peak(answer)
        found.seconds = self.seconds(answer)
        found.disk = disk(node, answer)
        if not found.fits:
            found.ways = list(self.ways(node, answer))

    def peak(self, answer: Mapping[str, Any]) -> float:
        """Return the peak of one device: measured here where steps were taken, else the tensors and what lies around them."""
        if not self.machine.here:
            return FRAGMENTS * float(answer["held"]) + CONTEXT
        if "measured" in answer and "process" in answer:
            return float(answer["process"])
        return float(answer["held"]) * (1 if answer.get("device", "cpu") == "cpu" else FRAGMENTS)

    def seconds(self, answer: Mapping[str, Any]) -> float:
        """Return the time of the training: of measured steps, or of the operations at a share of the machine's peak."""
        if self.machine.here:
            return float(answer["measured"]["seconds_a_step"] * answer["steps"]) if "measured" in answer else float("nan")
        return self.machine.seconds(sum(answer["flops"].values()), self.utilisation)

    def ways(self, node: Node, answer: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        """Yield what makes a node smaller, with the peak that it would have, until one fits: the first is the smallest change."""
        tried: list[tuple[str, list[str]]] = []
        if not node.settings.get("gradient_checkpointing"):
            tried.append(("gradient_checkpointing: true", ["--gradient_checkpointing", "true"]))
        full = answer["frozen"] == 0 and any(field.name == "method" for field in dataclasses.fields(node.stage.Options))
        if full:
            tried.append(("method: lora", ["--method", "lora"]))
        given: list[str] = []
        for change, flags in tried:
            given += flags
            _, other = self.run(node, f"way-{len(given)}", *given, follow_only=True)
            if other is None:
                given = given[: -len(flags)]
                continue
            answer = other
            yield change, self.peak(other)
            if self.peak(other) <= self.machine.memory:
                return
        if answer.get("roundable") and hasattr(node.stage.Options, "load_in_4bit") and not node.settings.get("load_in_4bit"):
            from pipeline.training.frozen import FOUR_BITS

            saved = answer["roundable"] * (answer["weight"] - FOUR_BITS)
            rest = {**answer["memory"], "weights": answer["memory"]["weights"] - saved}
            smaller = {rows: held - saved for rows, held in answer.get("smaller", {}).items()}
            answer = {
                **answer,
                "held": answer["held"] - saved,
                "process": answer["held"] - saved,
                "memory": rest,
                "smaller": smaller,
            }
            peak = self.peak(answer)
            yield "load_in_4bit: true", peak
            if peak <= self.machine.memory:
                return
        if self.machine.count > 1:
            parts = answer["memory"]
            shared = sum(parts[name] for name in ("weights", "gradients", "optimizer"))
            peak = FRAGMENTS * (answer["held"] - shared * (1 - 1 / self.machine.count)) + CONTEXT
            alone = not answer["frozen"] and not parts["others"]  # ZeRO-3 divides no adapter, and nothing beside a reference
            yield f"{'FSDP or ZeRO-3' if alone else 'FSDP'} on the {self.machine.count} devices", peak
            if peak <= self.machine.memory:
                return
        for batch, held in sorted(answer.get("smaller", {}).items(), key=lambda one: -int(one[0])):
            peak = self.peak({**answer, "held": held, "process": held})
            parts_of_a_step = answer["batch"] * answer["accumulation"] // int(batch)
            yield f"per_device_train_batch_size: {batch}, gradient_accumulation_steps: {parts_of_a_step}", peak
            if peak <= self.machine.memory:
                return

    def run(self, node: Node, way: str, *flags: str, follow_only: bool = False) -> tuple[str, dict[str, Any] | None]:
        """Run a node in a fork whose trainer plans; return why it failed, or "", and the trainer's answer."""
        from pipeline.training.planned import Request, stands_in

        folder = sketch.parent_of(node, self.place)
        if folder and sketch.too_large(folder, self.host):
            return "", sketch.answer(_changed(node, flags), folder, self.machine.here)
        output, answer = self.scratch / way / node.name, self.scratch / way / f"{node.name}.json"
        output.parent.mkdir(parents=True, exist_ok=True)
        rounds = int(node.settings.get("rounds", getattr(node.stage.Options, "rounds", 1)))
        steps = max(1, STEPS // rounds) * rounds if self.machine.here and not follow_only else 0
        argv = [str(node.stage.script), "--config", str(node.file), "--output", str(output)]
        for role, name in node.parents.items():
            argv += [f"--{role}", str(self.place(name) or name)] if role != DATA else ["--data", str(self.place(name) or name)]
        argv += ["--max_steps", str(steps or rounds), "--save_strategy", "'no'", *flags]
        if rounds > 1:
            argv += ["--prompts", str(_PROMPTS)]
        if not self.machine.here and "bf16" not in node.settings:
            argv += ["--bf16", "true"]
        watched = Watched()

        def before() -> None:
            watched.begin()
            stands_in(
                Request(answer, int(node.settings.get("max_steps", -1)), steps, rounds, SECONDS, hardware.room(), watched.peak)
            )

        def after() -> None:
            if answer.is_file():
                answer.write_text(json.dumps(json.loads(answer.read_text(encoding="utf-8")) | {"process": watched.more()}))

        printed = self.scratch / f"{node.name}-{way}.log"
        status = forked(node, argv, printed, before, after)
        found = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else None
        if way != "whole":
            shutil.rmtree(output, ignore_errors=True)
        lines = printed.read_text(encoding="utf-8", errors="replace")[-_SEEN:].strip().splitlines()
        return "" if status == 0 else (lines[-1] if lines else f"it ended with status {status}"), found


def _reason(missing: list[str], sketched: set[str]) -> str:
    """Return why a node is not planned whose parents handed nothing on."""
    if set(missing) <= sketched:
        return f"its parent {' and '.join(missing)} can't be loaded here; plan it with the parent's own folder in its place"
    return f"{' and '.join(missing)} must be made first, since what it hands on is not known before"


def _changed(node: Node, flags: Sequence[str]) -> Node:
    """Return a node with flags among its settings."""
    given = {flag.removeprefix("--"): config.read_yaml(value) for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    return dataclasses.replace(node, settings={**node.settings, **given})


def disk(node: Node, answer: Mapping[str, Any]) -> int:
    """Return the bytes of the checkpoints that are kept at a time and of the model."""
    from pipeline.chain.resume import _MARGIN
    from pipeline.training.loop import DEFAULTS

    keep = int(node.settings.get("save_total_limit", DEFAULTS["save_total_limit"]))
    every = int(node.settings.get("save_steps", DEFAULTS["save_steps"]))
    saves = max(1, int(answer["steps"]) // max(1, every))
    one = 4 * answer["trained"] + answer["memory"]["optimizer"]
    return int(_MARGIN * (min(saves, keep + 1) * one + 4 * (answer["trained"] + answer["frozen"])))


class Watched:
    """A child process whose memory is watched: of its accelerator, or of the host beside what it shares with its parent."""

    def __init__(self) -> None:
        memory.give_back()
        self.before = memory.held()
        self.peak: memory.Peak | hardware.DevicePeak

    def begin(self) -> None:
        """Begin to watch, in the child."""
        if hardware.device() == "cuda":
            self.before, self.peak = 0, hardware.DevicePeak()
            return
        self.peak = memory.Peak()
        self.peak.start()

    def more(self) -> int:
        """Return the bytes that the child held at most beyond what it began with."""
        return max(0, self.peak.most - self.before)

"""Make the nodes of a profile that are not up to date, parents first, then measure them.

Every node decides by digest whether there is anything to do; a node that has something to do runs its stage's script
in a process of its own. ARGS and DATA go to the one node that is the goal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.chain import life, profile, request, stages
from pipeline.commands.__main__ import folder, goes_to, words
from pipeline.system import process, signals
from pipeline.system.errors import UserError
from pipeline.system.words import meant

MAKE: dict[str, str] = {}  # it reads the variables of make itself


@dataclass
class Making:
    """What is made: a profile's nodes in one folder, with the flags of the goal."""

    chosen: profile.Profile
    out: Path
    goals: Sequence[str]  # nodes that were requested by name
    extra: Sequence[str]  # flags of the goal
    launch: Sequence[str]
    strict: bool
    done: set[str] = field(default_factory=set)
    checked: bool = False

    def flags(self, name: str) -> list[str]:
        """Return the command line of a node; one that is no goal keeps the flags that it was made with."""
        found = ["--config", str(self.chosen.nodes[name].file), "--output", str(self.out / name)]
        found += self.extra if name in self.goals else ["--upstream", "yes"]
        return found + ["--strict", "yes"] * self.strict

    def make(self, name: str) -> None:
        """Make a node and before it those that it waits for."""
        if name in self.done:
            return
        self.done.add(name)
        stage, flags = self.chosen.nodes[name].stage, self.flags(name)
        requested = request.read(stage, flags)
        for path in [*requested.parents.values(), *([requested.data] if requested.data else [])]:
            place = Path(path)
            if place.name in self.chosen.nodes and place.resolve().parent == self.out.resolve():
                self.make(place.name)
        if life.pending(stage, flags, dry=True) is None:
            return
        check = [] if self.checked else self._check(name)
        self.checked = True
        if status := run([*self.launch, str(stage.script), *flags, *check]):
            if self.launch != [sys.executable]:
                print(
                    f"make: what {Path(self.launch[0]).name} prints when a process ends, its traceback included, is about itself; why "
                    f"{name} ended stands above that, in the lines that begin with `{stage.kind}:`",
                    file=sys.stderr,
                )
            raise SystemExit(status)

    def _check(self, first: str) -> list[str]:
        """Return the flag by which the first stage's process checks the profile.

        Where that is not the goal, the goal's own flags and data are checked here, before what it waits for is trained.
        """
        if not self.extra or first in self.goals:
            return ["--check", "yes"]
        from pipeline.chain import check

        if faults := check.faults_of(request.read(self.chosen.nodes[self.goals[0]].stage, self.flags(self.goals[0]))):
            raise UserError(*faults)
        return []


def run(command: Sequence[str]) -> int:
    """Run a process to its end and return its status; when we are asked to stop, we wait for it while it saves.

    Ctrl-C in a terminal reaches both; any other signal is passed on.
    """
    passed = False
    with signals.at_step_ends(), subprocess.Popen(command) as child:
        while True:
            try:
                return child.wait(timeout=1) or (128 + stop if (stop := signals.pending_signal()) else 0)
            except subprocess.TimeoutExpired:
                if signals.pending_signal() == signal.SIGTERM and not passed:
                    passed = True
                    child.terminate()


def goals(chosen: profile.Profile, goal: str) -> list[str]:
    """Return the nodes that a goal names: a node, or all nodes of a stage; UserError with the nearest names."""
    if goal in chosen.nodes:
        return [goal]
    of_kind = [name for name, node in chosen.nodes.items() if node.kind == goal and not node.control_of]
    if of_kind:
        return of_kind
    if goal in stages.known():
        raise UserError(
            f"make {goal}: profile {chosen.name} has no such node; {goal} is a stage, so write {chosen.folder / f'{goal}.yaml'}, or "
            f"run it by itself: python stages/{goal}.py --data FILE --parent DIR --output DIR"
        )
    remedy = meant(goal, [*chosen.nodes, *profile.targets()], "`make help` lists both")
    raise UserError(f"make {goal}: profile {chosen.name} has no such node, and there is no such target; {remedy}")


def making(environment: dict[str, str]) -> Making:
    """Return what the variables of make ask for; UserError with every fault."""
    chosen = profile.load(profile.find(environment.get("PROFILE", "tiny")))
    goal = environment.get("GOAL", "")
    named = goals(chosen, goal) if goal else []
    data, extra = environment.get("DATA", ""), words(environment.get("ARGS", ""), "ARGS")
    if goal and not goes_to(goal, environment):
        data, extra = "", []
    elif (data or extra) and len(named) != 1:
        last = [name for name, node in chosen.nodes.items() if not node.control_of][-1]
        raise UserError(f"ARGS and DATA go to one node: say which, as in make {last} DATA=my.jsonl")
    launch = words(environment.get("LAUNCH", ""), "LAUNCH") or ["python"]
    return Making(
        chosen, folder(environment) / chosen.name, named, [*extra, *([f"--data={data}"] if data else [])],
        [sys.executable] if launch == ["python"] else launch, environment.get("STRICT", "") not in ("", "0", "no"),
    )  # fmt: skip


def main() -> int:
    """Make the goal, or everything."""
    requested = making(dict(os.environ))
    for name in requested.goals or requested.chosen.nodes:
        requested.make(name)
    if not requested.goals:
        from pipeline.commands import evaluate

        settings = requested.chosen.folder / evaluate.SETTINGS
        flags = [f"--config={settings}"] if settings.is_file() else []
        sys.argv = ["evaluate", *flags, f"--runs={requested.out}", *["--strict=yes"] * requested.strict]
        return evaluate.main()
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

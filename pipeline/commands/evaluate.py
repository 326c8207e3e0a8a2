"""Measure every finished node on rows that it held out, against its parent, its controls and baselines.

    python -m pipeline.commands.evaluate --runs runs/tiny [--config FILE] [--output FILE]

Nothing is trained: what is finished in the folder is measured, what the profile has beside it is named as missing.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import directory, manifest, profile, why
from pipeline.chain import finished as chain
from pipeline.chain import request as requests
from pipeline.chain.finished import Finished
from pipeline.data import recipe as recipes
from pipeline.data import types
from pipeline.evaluation import benchmarks, metrics
from pipeline.evaluation.subject import Options
from pipeline.system import config, hashes, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "OUT", "strict": "STRICT"}
SETTINGS = "evaluate.yaml"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is to be measured, how, and where the summary goes."""

    nodes: Sequence[Finished]
    missing: Sequence[str]  # nodes of the profile that are not finished
    options: Options
    output: Path
    inputs: str
    strict: bool

    def run(self) -> dict[str, Any]:
        """Measure, write the summary and return it."""
        from pipeline.evaluation.measure import measure

        found = measure(self.nodes, self.options, lambda text: say("evaluate", text))
        for node in self.nodes:
            if (manifest.read(node.folder) or {}).get("outputs") != node.record["outputs"]:
                raise UserError(f"{node.folder}: was made again while it was measured; run the same command again")
        summary = {
            "inputs": self.inputs, "options": dataclasses.asdict(self.options), "measured": {node.name: node.record["outputs"] for node in self.nodes},
            "missing": list(self.missing), **found, "code": {"files": self._code()}, "versions": manifest.versions(),
        }  # fmt: skip
        self.output.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_json(self.output, summary)
        return summary

    def current(self) -> bool:
        """Say whether the summary that lies there is of exactly this; when strict, made by the same code and libraries, too."""
        done = manifest.read(self.output.parent, self.output.name)
        if done is None or done["inputs"] != self.inputs:
            return False
        now = {"code": {"files": self._code()}, "versions": manifest.versions()} if self.strict else {}
        if now and (changed := why.surroundings(done, now)):
            say("evaluate", f"measures again, since {'; '.join(changed)}")
            return False
        return True

    def _code(self) -> dict[str, str]:
        """Return name and digest of our code that measures these nodes."""
        from pipeline.evaluation import measure

        used = [one for node in self.nodes for one in measure.evaluators(node)]
        modules = {str(sys.modules[type(one).__module__].__file__) for one in used}
        chosen = {file for node in self.nodes for file in node.stage.modules(node.options)}  # such as a task with its metrics
        return manifest.sources(Path(__file__), Path(str(measure.__file__)), *map(Path, sorted(modules)), *sorted(chosen))


def pending(argv: Sequence[str]) -> Evaluation:
    """Return what a command line asks to measure; UserError with every fault."""
    flags, faults = config.read_flags(argv)
    strict = flags.pop("strict", "no") == "yes"
    runs, file = Path(str(flags.pop("runs", "runs/tiny"))), flags.pop("config", None)
    output = Path(str(flags.pop("output", runs / "evaluate.json")))
    settings = config.read_profile(Path(str(file))) if file else {}
    values = settings | flags
    origins = dict.fromkeys(settings, str(file)) | dict.fromkeys(flags, "command line")
    faults += config.check(values, origins, Options, None) or _limits(values.get("rows_of", {}), origins.get("rows_of", ""))
    nodes = chain.finished(runs)
    if not nodes:
        faults.append(f"{runs}: no finished node; run make first")
    for node in nodes:
        faults += _faults(node)
    if faults:
        raise UserError(*faults)
    options = Options(**values)
    missing = _missing(runs, Path(str(file)) if file else None, {node.name for node in nodes})
    how = [[file.name, hashes.sha256(file)] for file in sorted(Path(str(metrics.__file__)).parent.glob("*.py"))]
    inputs = hashes.digest([[_identity(node) for node in nodes], missing, dataclasses.asdict(options), how])
    return Evaluation(nodes, missing, options, output, inputs, strict)


def _limits(given: Mapping[str, Any], where: str) -> list[str]:
    """Return what is wrong with limits by dataset type."""
    unknown = [
        f"{where}: rows_of: {name}: no such dataset type; known are {', '.join(types.known())}"
        for name in given
        if name not in types.known()
    ]
    numbers = [
        f"{where}: rows_of: {name}: expected at least 1, found {number!r}"
        for name, number in given.items()
        if type(number) is not int or number < 1
    ]
    return unknown + numbers


def _faults(node: Finished) -> list[str]:
    """Return why a node can't be measured: it was altered, or its parent is no longer the one that it was made from."""
    faults: list[str] = []
    try:
        requests.unaltered(node.folder, node.record)
    except UserError as error:
        faults += error.faults
    for entry in node.record["parents"]:
        parent = chain.read(Path(chain.place(node.folder, entry))) if "outputs" in entry else None
        if parent and parent.record["outputs"] != entry["outputs"]:
            faults.append(
                f"{node.folder}: was made from another {parent.folder.name} than {parent.folder}; make {node.name} again"
            )
    return faults


def _identity(node: Finished) -> Any:
    """Return what the figures of a node depend on: outputs, rows, its judge's questions, what it is judged by, benchmarks."""
    record = node.record
    judged_by = [list(against) for against in node.stage.judged_by(node.options)]
    found: list[str] = []
    if record["recipe"].get("type"):
        try:
            recipe = recipes.of(record)
            found = [recipe.digest(record["recipe"]["type"]), recipe.judge_digest()]
        except UserError as error:
            found = list(error.faults)
    parents = [entry | {"path": Path(entry["path"]).name} for entry in record["parents"]]  # wherever the folder was moved
    made = [record["outputs"], record["recipe"].get("digest"), parents, record["control_of"]]
    return [node.name, *made, judged_by, *found, *([run] if (run := benchmarks.entries_of(node)) else [])]


def _missing(runs: Path, file: Path | None, done: set[str]) -> list[str]:
    """Return the nodes of the profile that are not finished; none where the folder belongs to no profile."""
    folder = file.parent if file else profile.FOLDER / runs.resolve().name
    try:
        return [name for name in profile.load(folder).nodes if name not in done] if folder.is_dir() else []
    except UserError:
        return []  # whoever runs a node of it is told what is wrong


def main() -> int:
    """Measure what is finished, unless the summary is there and nothing that it depends on has changed."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(config.explain("evaluate", str(__doc__), Options, None))
        return 0
    started = time.time()
    asked = pending(sys.argv[1:])
    if asked.current():
        say("evaluate", f"up to date: {asked.output} (inputs {asked.inputs[:8]}, nothing changed)")
        return 0
    summary = asked.run()
    from pipeline.evaluation import table

    print(table.render(summary), flush=True)
    runs = asked.output.parent
    known = (profile.FOLDER / runs.name).is_dir()
    alone = f"python -m pipeline.commands.report --runs {shlex.quote(str(runs))}"
    following = directory.make_line(runs.name, runs.parent, "report") if known else alone
    say("evaluate", f"done in {time.time() - started:.0f} s; it lies in {asked.output}; next: {following}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

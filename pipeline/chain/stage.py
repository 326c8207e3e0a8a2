"""The life of a stage: read what was asked, skip or go on or start, train, write the record last.

A stage script declares a `Stage` and one function that trains; what keeps the chain honest happens
here, before torch is imported.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.chain import directory, manifest, request
from pipeline.system import config, process
from pipeline.data import recipe as recipes
from pipeline.system.errors import UserError
from pipeline.system.lock import Lock
from pipeline.system.process import say


class Edges(NamedTuple):
    """What goes into a stage and what comes out."""

    shape: str  # of the recipe's rows; empty where it reads none
    family: str = "causal"  # of the model that it hands on
    accepts: tuple[str, ...] = ("causal",)  # families of a parent


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage script declares about itself."""

    name: str
    edges: Edges | Callable[[Any], Edges]  # a function where the options decide them
    options: type  # the dataclass of our own options
    arguments: str | None  # the library class that owns every other key
    needs_parent: bool = True
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)  # ours, for keys of the library
    sources: Callable[[Any], list[Path]] | None = None  # files that count as input beside the recipe's

    def between(self, options: Any) -> Edges:
        """Return the edges under these options; UserError where the options fit nothing."""
        return self.edges(options) if callable(self.edges) else self.edges


@dataclasses.dataclass
class Run:
    """One run of a stage: what was asked, where things lie, and the record that grows."""

    stage: Stage
    options: Any
    arguments: dict[str, Any]  # keys for the library's class
    parent: str  # folder or hub id; empty where there is none
    output: Path
    recipe: recipes.Recipe
    record: dict[str, Any]
    strict: bool = False  # whether a change of code or library counts

    @property
    def name(self) -> str:
        """The stage's name in lines and records; SFT from random weights is the control."""
        return str(self.record["stage"])

    @property
    def result(self) -> Path:
        """Where the model is written, until it is whole and moves into the stage directory."""
        return self.output / directory.RESULT

    def unchanged(self) -> None:
        """Raise UserError where the parent or the data changed while they were read."""
        asked = self.record["asked"]
        edges = self.stage.between(self.options)
        if self.parent and request.parent_identity(self.parent, self.name, edges.accepts) != asked["parent"]:
            raise UserError(f"--parent {self.parent}: was changed while it was read; run the same command again")
        if "recipe" in asked and self.recipe.digest(edges.shape) != asked["recipe"]:
            raise UserError(f"recipe {self.recipe.name}: was changed while it was read; run the same command again")

    @property
    def seed(self) -> int:
        """The stage's seed, from which every random choice comes."""
        return int(self.record["seed"])

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return process.main_process()

    def say(self, text: str) -> None:
        """Print one line for the person, once however many processes run."""
        say(self.name, text)

    def library_arguments(self, **forced: Any) -> Any:
        """Build the library's argument object; UserError where it refuses a value."""
        from pipeline.system.hardware import placement

        assert self.stage.arguments
        values = placement() | self.arguments | {"output_dir": str(self.output)} | forced
        try:
            return config.library_class(self.stage.arguments)(**values)
        except (ValueError, TypeError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"{self.stage.arguments} refuses the configuration: {line}") from None


def run_stage(stage: Stage, train: Callable[[Run], None], story: str) -> int:
    """Run a stage script: `train` gets a claimed Run and leaves a whole model folder in its output."""

    def body() -> int:
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(config.explain(stage.name, story, stage.options, stage.arguments))
            return 0
        started = time.time()
        run = _asked(stage, sys.argv[1:])
        if run is None:
            return 0
        if warning := process.lonely():
            run.say(warning)
        process.wait_for_all()  # nobody still looks at the folder when rank 0 changes it
        lock = Lock(run.output)
        if run.main:
            lock.take()
        try:
            process.wait_for_all()
            if directory.finished_meanwhile(run):
                return 0
            aside = directory.claim(run) if run.main else None
            process.wait_for_all()
            try:
                train(run)
            except Exception:
                if run.main:
                    directory.unclaim(run, aside)
                raise
            if run.main:
                directory.close(run, started)
        finally:
            lock.release()
        return 0

    return process.execute(body)


def _asked(stage: Stage, argv: list[str]) -> Run | None:
    """Return what is to be run, or None where the output is current already; UserError with every fault."""
    asked = request.read(stage.name, argv)
    if asked.kept:
        say(stage.name, f"keeps {asked.kept}, as it was asked for; `make {stage.name}` returns to the profile")
    if len(asked.parents) > 1:
        asked.faults.append(f"command line: {stage.name} takes one --parent, found {len(asked.parents)}")
    if stage.needs_parent and not asked.parents:
        asked.faults.append(f"command line: --parent is missing; {stage.name} starts from a model folder or hub id")
    asked.faults += config.check(asked.asked, asked.origins, stage.options, stage.arguments, loose=True)
    edges, well_formed = Edges(""), False
    found: dict[str, Any] = {}
    sources: list[tuple[str, str]] = []
    if asked.faults:
        if isinstance(stage.edges, Edges):
            request.parent(asked, stage.edges.accepts)
    else:
        options, arguments = request.split(asked, stage.options, stage.defaults)
        try:
            edges, well_formed = stage.between(options), True
        except UserError as error:
            asked.gather(error)
        recipe = _recipe(asked, edges.shape, options) if well_formed else recipes.EMPTY
        found = request.identity(asked, options, arguments, recipe, edges.shape)
        if well_formed:
            found |= request.parent(asked, edges.accepts)
        sources = recipe.contents() if "recipe" in found else []
        if stage.sources:
            try:
                sources = recipes.listing(stage.sources(options))
                found["sources"] = [sha256 for _, sha256 in sources]
            except UserError as error:
                asked.gather(error)
    record = {
        "stage": "control" if getattr(options, "init", "") == "random" else stage.name, "family": edges.family,
        "inputs": manifest.digest(found), "asked": found, "seed": arguments.get("seed", 42),
        "config": dataclasses.asdict(options) | arguments, "overrides": asked.overrides(),
        "parents": [{"path": path, **found.get("parent", {})} for path in asked.parents],
        "recipe": {"name": recipe.name, "digest": found.get("recipe"), "data": asked.data, "sources": sources},
        "code": {"files": manifest.sources(Path(sys.argv[0]).name)}, "versions": manifest.versions(),
    } if well_formed else {}  # fmt: skip
    if asked.output and not asked.faults and directory.current(asked, record):
        return None
    strict = config.check(asked.asked, asked.origins, stage.options, stage.arguments)  # imports the library's class
    asked.gather(UserError(*strict))
    asked.settle()
    assert asked.output
    return Run(stage, options, arguments, "".join(asked.parents), asked.output, recipe, record, asked.strict)


def _recipe(asked: request.Request, shape: str, options: Any) -> recipes.Recipe:
    if asked.data and not shape:
        asked.faults.append(f"command line: --data can't be used here; {Path(sys.argv[0]).stem} reads no rows")
    if not shape:
        return recipes.EMPTY
    try:
        return recipes.from_data(asked.data, shape) if asked.data else recipes.load(options.recipe)
    except UserError as error:
        asked.gather(error)
        return recipes.EMPTY

"""The life of a stage: read what was asked, skip or go on or start, train, write the record last.

A stage script declares a `Stage` and one function that trains; what keeps the chain honest happens
here, before torch is imported.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import config, manifest, process, request, resume, why
from pipeline.data import recipe as recipes
from pipeline.errors import UserError
from pipeline.lock import Lock

_NEXT = {"pretrain": "make sft", "sft": "make dpo", "dpo": "make evaluate, then make chat"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage script declares about itself."""

    name: str
    shape: str  # of the recipe's rows
    options: type  # the dataclass of our own options
    arguments: str | None  # the library class that owns every other key
    family: str = "causal"  # of the model that it hands on
    accepts: tuple[str, ...] = ("causal",)  # families of a parent
    needs_parent: bool = True
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)  # ours, for keys of the library
    sources: Callable[[Any], list[Path]] | None = None  # files that count as input beside the recipe's


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
        from pipeline.hardware import placement

        assert self.stage.arguments
        values = placement() | self.arguments | {"output_dir": str(self.output)} | forced
        try:
            return config.library_class(self.stage.arguments)(**values)
        except (ValueError, TypeError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"{self.stage.arguments} refuses the configuration: {line}") from None


def say(name: str, text: str) -> None:
    """Print one line of a stage, from the main process alone."""
    if process.main_process():
        print(f"{name:<8} {text}", flush=True)


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
            aside = _claim(run) if run.main else None
            process.wait_for_all()
            try:
                train(run)
            except Exception:
                if run.main:
                    _unclaim(run, aside)
                raise
            if run.main:
                _close(run, started)
        finally:
            lock.release()
        return 0

    return process.execute(body)


def _asked(stage: Stage, argv: list[str]) -> Run | None:
    """Return what is to be run, or None where the output is current already; UserError with every fault."""
    asked = request.read(stage.name, argv)
    if asked.kept:
        say(stage.name, f"keeps {asked.kept}, as it was asked for; `make {stage.name}` returns to the profile")
    if asked.data and not stage.shape:
        asked.faults.append(f"command line: --data can't be used here; {Path(sys.argv[0]).stem} reads no rows")
    if len(asked.parents) > 1:
        asked.faults.append(f"command line: {stage.name} takes one --parent, found {len(asked.parents)}")
    if stage.needs_parent and not asked.parents:
        asked.faults.append(f"command line: --parent is missing; {stage.name} starts from a model folder or hub id")
    asked.faults += config.check(asked.asked, asked.origins, stage.options, stage.arguments, loose=True)
    well_formed = not asked.faults
    parent = request.parent(asked, stage.accepts)
    found: dict[str, Any] = {}
    sources: list[tuple[str, str]] = []
    if well_formed:
        options, arguments = request.split(asked, stage.options, stage.defaults)
        recipe = _recipe(asked, stage, options)
        found = request.identity(asked, options, arguments, recipe, stage.shape) | parent
        sources = recipe.contents() if "recipe" in found else []
        if stage.sources:
            try:
                sources = recipes.listing(stage.sources(options))
                found["sources"] = [sha256 for _, sha256 in sources]
            except UserError as error:
                asked.gather(error)
    record = {
        "stage": "control" if getattr(options, "init", "") == "random" else stage.name, "family": stage.family,
        "inputs": manifest.digest(found), "asked": found, "seed": arguments.get("seed", 42),
        "config": dataclasses.asdict(options) | arguments, "overrides": asked.overrides(),
        "parents": [{"path": path, **found.get("parent", {})} for path in asked.parents],
        "recipe": {"name": recipe.name, "digest": found.get("recipe"), "data": asked.data, "sources": sources},
        "code": {"files": manifest.sources(Path(sys.argv[0]).name)}, "versions": manifest.versions(),
    } if well_formed else {}  # fmt: skip
    if asked.output and not asked.faults and _current(asked, record):
        return None
    strict = config.check(asked.asked, asked.origins, stage.options, stage.arguments)  # imports the library's class
    asked.gather(UserError(*strict))
    asked.settle()
    assert asked.output
    return Run(stage, options, arguments, "".join(asked.parents), asked.output, recipe, record, asked.strict)


def _current(asked: request.Request, record: dict[str, Any]) -> bool:
    """Say whether there is nothing to do: the stage is finished and current, or only the reasons were asked for."""
    assert asked.output
    name = record["stage"]
    done = manifest.read(asked.output)
    if asked.why:
        for line in _reasons(asked.output, record):
            say(name, line)
        return True
    if done is None or done["inputs"] != record["inputs"]:
        return False
    request.unaltered(asked.output, done)
    if asked.strict and (changed := why.surroundings(done, record)):
        say(name, f"is made again, since {'; '.join(changed)}")
        return False
    say(name, f"up to date: {asked.output} (inputs {record['inputs'][:8]}, nothing changed)")
    if (asked.output / manifest.CLAIM).exists() and process.main_process():  # killed while it tidied up
        lock = Lock(asked.output)
        lock.take()
        _tidy(asked.output)
        lock.release()
    return True


def _reasons(output: Path, record: dict[str, Any]) -> list[str]:
    """Return in plain words what would happen to a stage, and why."""
    done, claimed = manifest.read(output), manifest.read(output, manifest.CLAIM)
    old = done or claimed
    if old is None:
        return [f"has not run yet: {output} holds no stage"]
    if done and (altered := manifest.altered(output, done)):
        return [f"was altered after it was finished: {'; '.join(altered)}"]
    changed, around = why.asked(old, record), why.surroundings(old, record)
    verdict = "is up to date" if done else "is half finished and goes on"
    lines = ["would be made again, since"] + [f"  {line}" for line in changed] if changed else [verdict]
    return lines + ([f"only with STRICT=1 would count: {line}" for line in around])


def _recipe(asked: request.Request, stage: Stage, options: Any) -> recipes.Recipe:
    if not stage.shape:
        return recipes.EMPTY
    try:
        return recipes.from_data(asked.data, stage.shape) if asked.data else recipes.load(options.recipe)
    except UserError as error:
        asked.gather(error)
        return recipes.EMPTY


def _claim(run: Run) -> Path | None:
    """Mark the stage directory as ours; what other inputs left there is moved aside, never mixed or deleted.

    Returns where it was moved.
    """
    aside = None
    done, claimed = manifest.read(run.output), manifest.read(run.output, manifest.CLAIM)
    old = done or claimed
    if old is None and run.output.is_dir() and any(run.output.iterdir()):
        raise UserError(f"--output {run.output}: not empty and not a stage directory; give another folder or move it away")
    begun = {key: run.record[key] for key in ("stage", "inputs", "asked", "overrides", "recipe", "code", "versions")}
    begun["processes"] = process.count()
    if old is not None and old["inputs"] == run.record["inputs"] and not done:
        around = why.surroundings(old, run.record)
        if old["processes"] != begun["processes"]:
            run.say(
                f"was begun by {old['processes']} processes and goes on with {begun['processes']}: each step reads another batch"
            )
        if not (run.strict and around):
            if around:
                run.say(f"goes on although since it began {'; '.join(around)}; STRICT=1 would begin again")
            resume.restart(run.output)
            return None
    if done and done["inputs"] == run.record["inputs"] and not run.strict:
        raise UserError(f"--output {run.output}: another process has just finished it; there is nothing left to do")
    if old is not None:
        aside = run.output.parent / ".aside" / f"{run.output.name}-{old['inputs'][:8]}"
        aside.parent.mkdir(exist_ok=True)
        number = 1
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{run.output.name}-{old['inputs'][:8]}-{number}")
        run.output.rename(aside)
        run.say(f"{'; '.join(why.asked(old, run.record)) or 'code changed'}; what was there is kept in {aside}")
    manifest.claim(run.output, begun)
    return aside


def _unclaim(run: Run, aside: Path | None) -> None:
    """Put things back as they were before a stage that stopped before its first checkpoint."""
    if any(run.output.glob("checkpoint-*")):
        return
    shutil.rmtree(run.output)
    if aside:
        aside.rename(run.output)
        run.say(f"put back what was moved aside: {run.output}")


def _close(run: Run, started: float) -> None:
    """Write the record last and say what was learned, in how long, where it lies, what to type next."""
    from pipeline.hardware import peak_memory

    run.record["code"] |= manifest.commit()
    run.record |= {
        "hardware": manifest.hardware(),
        "seconds": round(time.time() - started, 1), "peak_memory_bytes": peak_memory(),
    }  # fmt: skip
    record = manifest.seal(run.output, run.record)
    _tidy(run.output)  # only now: whatever stopped us before could still go on
    learned = ""
    if "metrics" in record:
        first, last = record["metrics"]["first_loss"], record["metrics"]["last_loss"]
        learned = f" over {record['tokens']:,} tokens, training loss {first:.3f} -> {last:.3f}"
    run.say(
        f"done in {record['seconds']:.0f} s{learned}; it lies in {run.output}; next: {_NEXT.get(run.name, 'make evaluate')}"
    )


def _tidy(output: Path) -> None:
    """Remove what a finished stage was made with; the claim last, since it says that there is something to remove."""
    resume.clear(output)
    (output / manifest.CLAIM).unlink(missing_ok=True)

"""The life of a node: read the request, skip or go on or begin, train, write the record last.

A stage script declares a `Stage`; what keeps the chain honest happens here, before torch is imported.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.chain import directory, manifest, request, stages
from pipeline.chain.run import Run
from pipeline.chain.stage import DATA, PARENT, Signature, Stage
from pipeline.data import recipe as recipes
from pipeline.system import config, hashes, process
from pipeline.system.errors import UserError
from pipeline.system.lock import Lock
from pipeline.system.process import say


def run_stage(declared: type[Stage]) -> int:
    """Run a stage script and return its exit status; the stage gets a claimed Run and leaves a whole model in its result."""
    stage = declared()

    def body() -> int:
        argv = sys.argv[1:]
        if {"--help", "-h"} & set(argv):
            print(explain(stage))
            return 0
        started = time.time()
        run = pending(stage, argv)
        if run is None:
            return 0
        if warning := process.launch_warning():
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
                stage.train(run)
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


def explain(stage: Stage) -> str:
    """Return what --help prints of a stage."""
    roles = {role: f"DIR-OR-HUB-ID (a model of family {' or '.join(families)})" for role, families in stage.takes.items()}
    if stage.reads or type(stage).signature is not Stage.signature:
        roles[DATA] = "FILE, GLOB, FOLDER, HUB ID or a node that hands on rows (in place of the recipe)"
    return config.explain(stage.kind, stage.story, stage.Options, stage.library_of({}), roles)


def pending(stage: Stage, argv: Sequence[str], dry: bool = False) -> Run | None:
    """Return what is to be run, or None where the node is up to date; UserError with every fault.

    `dry`: the library's own class is not imported, so its keys are not checked yet.
    """
    requested = request.read(stage, argv)
    if requested.kept:
        say(requested.name, f"keeps {requested.kept}, as requested; `make {requested.name}` returns to the profile")
    if shared := request.told(requested.shared):
        say(requested.name, f"takes {shared} from {requested.control_of}, which it is a control of")
    library = stage.library_of(requested.values)
    requested.faults += config.check(requested.values, requested.origins, stage.Options, library, loose=True)
    run = _run(requested)
    requested.faults += requested.unread()
    if run and not requested.faults and directory.current(requested, run.record):
        return None
    if not dry:
        strict = config.check(
            requested.values, requested.origins, stage.Options, library, ignores=stage.ignores
        )  # imports the library's class
        requested.gather(UserError(*strict))
        if requested.check and requested.file:
            from pipeline.chain import check

            requested.gather(UserError(*check.faults_of(requested)))
    requested.settle()
    assert run
    return run


def _run(requested: request.Request) -> Run | None:
    """Return the run that was requested, with its record begun; None where faults leave none."""
    stage = requested.stage
    if requested.faults:
        known = Stage.signature(stage, None)
        if type(stage).signature is not Stage.signature:  # which roles it needs, options decide, and they are wrong
            known = dataclasses.replace(known, optional=tuple(stage.takes))
        request.parents(requested, known)
        return None
    options, arguments = stage.split(requested.values)
    try:
        signature = stage.declared(options)
    except UserError as error:
        requested.gather(error)
        return None
    recipe = recipe_of(requested, signature, options)
    if recipe.streams:
        requested.faults += _streamed(stage, recipe, options, arguments)
    found = request.identity(requested, options, arguments, recipe, signature)
    sources = recipe.contents() if "recipe" in found else []
    try:
        if files := stage.sources(options):
            more = recipes.listing(files)
            sources = [*sources, *more]
            found["sources"] = [sha256 for _, sha256 in more]
        if digests := stage.digests(options):
            found["digests"] = digests
    except UserError as error:
        requested.gather(error)
    return _begun(requested, options, arguments, signature, recipe, found, sources)


def _streamed(stage: Stage, recipe: recipes.Recipe, options: Any, arguments: Mapping[str, Any]) -> list[str]:
    """Return why a stage can't train on a recipe that is streamed."""
    if not stage.streams:
        known = " and ".join(kind for kind in stages.known() if stages.load(kind).streams)
        return [f"recipe {recipe.name}: stream: {stage.kind} reads its rows from disk; {known} can stream"]
    faults = []
    if getattr(options, "flops", 0):
        faults.append(f"recipe {recipe.name}: stream: flops can't be known before a stream is read; give max_steps")
    if not isinstance(steps := arguments.get("max_steps", -1), int) or steps <= 0:
        faults.append(f"recipe {recipe.name}: stream: max_steps is needed, since a stream has no end")
    return faults


def _begun(
    requested: request.Request, options: Any, arguments: dict[str, Any], signature: Signature, recipe: recipes.Recipe,
    found: dict[str, Any], sources: list[tuple[str, str]],
) -> Run | None:  # fmt: skip
    if requested.output is None:
        return None
    stage = requested.stage
    random = getattr(options, "init", "") == "random"
    record = {
        "stage": stage.kind, "node": requested.name, "title": stage.title, "script": f"stages/{stage.kind}.py", "family": signature.gives,
        "rows_type": signature.makes, "control_of": requested.control_of,
        "starts_from": "nothing" if PARENT not in requested.parents else "random" if random else "parent",
        "inputs": hashes.digest(found), "request": found, "seed": arguments.get("seed", getattr(options, "seed", 42)),
        "config": dataclasses.asdict(options) | arguments, "overrides": requested.overrides(),
        "parents": requested.parent_entries(found["parents"]),
        "recipe": {"name": recipe.name, "type": signature.reads, "digest": found.get("recipe"), "data": requested.data, "sources": sources},
        "versions": manifest.versions(), "profile": str(requested.file.parent.name) if requested.file else "",
    }  # fmt: skip
    return Run(stage, requested.name, options, arguments, requested.parents, requested.output, recipe, record, requested.strict)


def recipe_of(requested: request.Request, signature: Signature, options: Any) -> recipes.Recipe:
    """Return the recipe that a request names, or `EMPTY` where it reads no rows; faults are gathered."""
    if requested.data and not signature.reads:
        requested.faults.append(f"command line: --data can't be used here; {requested.stage.kind} reads no rows")
    if not signature.reads:
        return recipes.EMPTY
    try:
        return recipes.from_data(requested.data, signature.reads) if requested.data else recipes.load(options.recipe)
    except UserError as error:
        requested.gather(error)
        return recipes.EMPTY

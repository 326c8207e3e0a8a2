"""What becomes of a node's folder: looked at, claimed, put back where nothing came of it, closed, tidied."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.chain import blocks, manifest, request, resume, why
from pipeline.system import process
from pipeline.system.errors import UserError
from pipeline.system.lock import Lock
from pipeline.system.process import say

if TYPE_CHECKING:
    from pipeline.chain.run import Run


def current(requested: request.Request, record: dict[str, Any]) -> bool:
    """Say whether there is nothing to do: the node is finished and current, or only the reasons were asked for."""
    assert requested.output
    name = record["node"]
    done = manifest.read(requested.output)
    if requested.why:
        for line in _reasons(requested, record):
            say(name, line)
        return True
    if done is None or done["inputs"] != record["inputs"]:
        return False
    request.unaltered(requested.output, done)
    if requested.strict and (changed := why.surroundings(done, record | {"code": code(requested)})):
        say(name, f"is made again, since {'; '.join(changed)}")
        return False
    say(name, f"up to date: {requested.output} (inputs {record['inputs'][:8]}, nothing changed)")
    if (requested.output / manifest.CLAIM).exists() and process.main_process():  # killed while it tidied up
        lock = Lock(requested.output)
        lock.take()
        _tidy(requested.output)
        lock.release()
    return True


def code(requested: request.Request) -> dict[str, Any]:
    """Return our own code that the stage can reach, as the record holds it."""
    options, _ = requested.stage.split(requested.values)
    return {"files": manifest.sources(requested.stage.script, *requested.stage.modules(options))}


def _reasons(requested: request.Request, record: dict[str, Any]) -> list[str]:
    """Return in plain words what would happen to a node, and why."""
    output = requested.output
    assert output
    done, claimed = manifest.read(output), manifest.read(output, manifest.CLAIM)
    old = done or claimed
    if old is None:
        return [f"has not run yet: there is no {output}"]
    if done and (altered := manifest.altered(output, done)):
        return [f"was altered after it was finished: {'; '.join(altered)}"]
    changed, around = why.changes(old, record), why.surroundings(old, record | {"code": code(requested)})
    verdict = "is up to date" if done else "is half finished and goes on"
    lines = ["would be made again, since"] + [f"  {line}" for line in changed] if changed else [verdict]
    return lines + ([f"only with STRICT=1 would count: {line}" for line in around])


def claim(run: Run) -> Path | None:
    """Mark the node's folder as ours; what other inputs left there is moved aside, never mixed or deleted.

    Returns where it was moved.
    """
    done, claimed = manifest.read(run.output), manifest.read(run.output, manifest.CLAIM)
    old = done or claimed
    if old is None and run.output.is_dir() and any(path.suffix != ".partial" for path in run.output.iterdir()):
        raise UserError(f"--output {run.output}: not empty and not the folder of a node; give another folder or move it away")
    run.record["code"] = {"files": manifest.sources(run.stage.script, *run.stage.modules(run.options)), **manifest.commit()}
    if claimed and not done and _goes_on(run, claimed):
        shutil.rmtree(run.result, ignore_errors=True)
        return None
    aside = _move_aside(run, old) if old else None
    begun = {key: run.record[key] for key in ("stage", "node", "inputs", "request", "overrides", "recipe", "code", "versions")}
    manifest.claim(run.output, begun | {"version": manifest.VERSION, "processes": process.count()})
    return aside


def finished_meanwhile(run: Run) -> bool:
    """Say whether another process finished just this while we waited for the lock."""
    done = manifest.read(run.output)
    if done is None or done["inputs"] != run.record["inputs"] or run.strict:
        return False
    run.say(f"up to date: {run.output} was finished by another process")
    return True


def _goes_on(run: Run, claimed: dict[str, Any]) -> bool:
    """Say whether a half-finished node is the one that is requested, and what is not as it was when it began."""
    if claimed["inputs"] != run.record["inputs"]:
        return False
    around = why.surroundings(claimed, run.record)
    if around and run.strict:
        return False
    if around:
        run.say(f"goes on although since it began {'; '.join(around)}; STRICT=1 would begin again")
    if claimed["processes"] != process.count():
        run.say(f"was begun by {claimed['processes']} processes, now {process.count()}: each step reads another batch")
    return True


def _move_aside(run: Run, old: dict[str, Any]) -> Path:
    """Rename the node's folder, so that nothing in it is lost, and say why."""
    folder = run.output.parent / ".aside"
    folder.mkdir(exist_ok=True)
    name = f"{run.output.name}-{old['inputs'][:8]}"
    names = [name, *(f"{name}-{number}" for number in range(2, 2 + len(list(folder.iterdir()))))]
    aside = next(folder / name for name in names if not (folder / name).exists())
    reasons = why.changes(old, run.record) or why.surroundings(old, run.record)
    run.output.rename(aside)
    run.say(f"{'; '.join(reasons)}; what was there is kept in {aside}")
    return aside


def set_result_aside(run: Run) -> Path:
    """Move a result that is not handed on to where it harms nothing, and return that folder; an earlier one is replaced."""
    kept = run.output.parent / ".aside" / f"{run.output.name}-{run.record['inputs'][:8]}-result"
    kept.parent.mkdir(exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    run.result.rename(kept)
    return kept


def unclaim(run: Run, aside: Path | None) -> None:
    """Put things back as they were before a node that stopped before its first checkpoint and its first block."""
    if any(run.output.glob("*checkpoint-*")) or blocks.any_kept(run.output):  # damaged ones, too
        return
    shutil.rmtree(run.output)
    if aside:
        aside.rename(run.output)
        run.say(f"put back what was moved aside: {run.output}")


def close(run: Run, started: float) -> None:
    """Write the record last and say what was learned, in how long, where it lies, what to type next."""
    from pipeline.system.hardware import peak_memory

    seconds = time.time() - started + run.record.pop("seconds_before", 0.0)
    run.record |= {"hardware": manifest.hardware(), "seconds": round(seconds, 1), "peak_memory_bytes": peak_memory()}
    record = manifest.seal(run.output, run.result, run.record)
    _tidy(run.output)  # only now: whatever stopped us before could still go on
    learned = ""
    if "metrics" in record:
        first, last = record["metrics"]["first_loss"], record["metrics"]["last_loss"]
        learned = f" over {record['tokens']:,} tokens, training loss {first:.3f} -> {last:.3f}"
    run.say(f"done in {record['seconds']:.0f} s{learned}; it lies in {run.output}; next: {following(run)}")


def following(run: Run) -> str:
    """Return a command that goes on from a finished node, to be copied: its first child in the profile, else the evaluation."""
    from pipeline.chain import profile

    runs = run.output.parent
    named = run.record["profile"]
    if not named or runs.name != named or not (profile.FOLDER / named).is_dir():
        return f"python -m pipeline.commands.evaluate --runs {shlex.quote(str(runs))}"
    try:
        children = profile.load(profile.FOLDER / named).children(run.name)
    except UserError:
        children = []
    return make_line(named, runs.parent, *(children[:1] or ["evaluate"]))


def make_line(named: str, runs: Path, *goals: str) -> str:
    """Return a call of make, to be copied, for a profile and a folder of runs."""
    given = {"PROFILE": (named, "tiny"), "RUNS": (str(runs), "runs")}
    words = [f"{key}={shlex.quote(value)}" for key, (value, usual) in given.items() if value != usual]
    return " ".join(["make", *words, *goals])


def _tidy(output: Path) -> None:
    """Remove what a finished stage was made with; the claim last, since it says that there is something to remove."""
    resume.clear(output)
    (output / manifest.CLAIM).unlink(missing_ok=True)

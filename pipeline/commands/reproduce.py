"""Make a pushed node again from its pushed parents, and say whether the same comes out.

    python -m pipeline.commands.reproduce --hub me/tiny [--output DIR] [--data FILES] [--ROLE FOLDER]

--hub is a repository, me/tiny or me/tiny@REVISION, or the folder of a node that somebody sent. Its record says what the
node was made from: stage, settings, recipe, parents. Parents are downloaded from where the record says that they were
pushed, or given by their role. The node is made in a folder of its own; three things can come out: the same bytes
(status 0), other bytes and figures within the record's intervals (0), or something else (1). What is missing is told
before anything is trained (2).
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.chain import finished, life, manifest, stages
from pipeline.chain.stage import DATA, ROWS, Stage
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"hub": "HUB", "data": "DATA", "launch": "LAUNCH"}


def main() -> int:
    """Fetch, check what is needed, make, compare."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    roles = {role for kind in stages.known() for role in stages.load(kind).takes}
    flags, faults = config.read_flags(sys.argv[1:], sorted(roles))
    unknown = [key for key in flags if key not in {"hub", "data", "output", "launch", *roles}]
    faults += [f"command line: --{key}: unknown flag; `make reproduce ARGS=--help` explains them" for key in unknown]
    faults += ["HUB: name what is made again, as in HUB=me/tiny"] * (not flags.get("hub"))
    if faults:
        raise UserError(*faults)
    where = str(flags.pop("hub"))
    output = Path(str(flags.pop("output", Path("runs") / "reproduced" / Path(where.rpartition("@")[0] or where).name)))
    launch = str(flags.pop("launch", "python"))
    return _reproduce(where, output, flags, launch)


def _reproduce(where: str, output: Path, given: dict[str, Any], launch: str) -> int:
    """Make again what lies at a place, in `output`; `given`: role → folder, and `data`."""
    from pipeline.hub import reproduction, sent

    folder = _fetched(where, output / "hub")
    record = sent.read(folder)
    stage = _stage(record)
    say("reproduce", f"{where}: {record['node']}, {record['title']}, made by {record['script']}{_commit(record)}")
    parents = _parents(record, folder, output / "hub", given)
    if record["recipe"].get("data") and DATA not in {*given, *parents}:
        files = ", ".join(f"{name} (sha256 {digest[:12]}…)" for name, digest in record["recipe"]["sources"])
        raise UserError(f"{where}: was trained on files that the record names and does not hold: {files}; give them with DATA=")
    flags = ["--config", str(_settings(record, stage, output)), "--output", str(output / record["node"])]
    flags += [word for role, path in (parents | given).items() for word in (f"--{role}", str(path))]
    run = life.pending(stage, flags)
    started = run.record if run else manifest.read(output / record["node"])
    assert started
    if differs := reproduction.parted_before(record, started):
        say("reproduce", f"not reproduced, and nothing was trained: it parts at its inputs: {'; '.join(differs)}")
        return 1
    say("reproduce", f"the same inputs, {record['inputs'][:12]}: settings, recipe{', parents' * bool(record['parents'])}")
    for line in reproduction.surroundings(record, stage):
        say("reproduce", f"another than where it was made: {line}")
    if run and (status := _make(stage, flags, launch, record["hardware"].get("threads"))):
        return status
    made = manifest.read(output / record["node"])
    assert made
    wanted = record.get("figures")
    figures = _measured(output, made, wanted["options"]) if wanted and made["outputs"] != record["outputs"] else None
    found = reproduction.verdict(record, made, figures)
    for line in found.lines:
        say("reproduce", line)
    return int(not found.reproduced)


def _fetched(where: str, beside: Path) -> Path:
    """Return the folder of a node: the one given, or what a repository holds, downloaded."""
    if Path(where).is_dir():
        return Path(where)
    repo, _, revision = where.partition("@")
    if repo.count("/") != 1:
        raise UserError(f"HUB: {where}: no such folder, and no repository, which is named as in me/tiny")
    return _download(repo, revision or "main", beside / repo.replace("/", "--"))


def _download(repo: str, revision: str, folder: Path) -> Path:
    """Download a revision of a model into a folder; files that are there already are not fetched again."""
    from pipeline.hub.upload import Hub

    hub = Hub(lambda text: say("reproduce", text), 120.0)
    say("reproduce", f"downloads {repo} at {revision}")
    hub.attempt(f"download {repo}", lambda: hub.api.snapshot_download(repo, revision=revision, local_dir=folder))
    return folder


def _pushed(entry: Mapping[str, Any], beside: Path) -> Path:
    """Download a parent that was pushed, and all that it descends from, each beside the others, as a profile's nodes lie."""
    from pipeline.hub import sent

    repo, tag = entry["repository"]
    folder = _download(repo, tag, beside / str(entry.get("node") or repo.replace("/", "--")))
    for older in sent.read(folder)["parents"]:
        if older.get("repository"):
            _pushed(older, beside)
    return folder


def _stage(record: Mapping[str, Any]) -> Stage:
    if record["stage"] not in stages.known():
        raise UserError(f"{record['node']}: was made by {record['script']}, which is not here; check out{_commit(record)}")
    return stages.load(str(record["stage"]))


def _commit(record: Mapping[str, Any]) -> str:
    code = record["code"]
    return f" at commit {code['commit']}{', edited' * bool(code['dirty'])}" if code.get("commit") else ""


def _parents(record: Mapping[str, Any], folder: Path, beside: Path, given: Mapping[str, Any]) -> dict[str, str]:
    """Return role → folder or hub id of the parents, downloaded where they were pushed; UserError with all that are missing."""
    found: dict[str, str] = {}
    faults = []
    for entry in record["parents"]:
        role, name = str(entry["role"]), str(entry.get("node") or entry.get("hub") or "a model folder")
        if role in given:
            continue
        if entry.get("hub"):
            found[role] = str(entry["hub"])
        elif entry.get("repository"):
            found[role] = str(_pushed(entry, beside))
        elif entry["beside"] and (place := folder.parent / name).is_dir():
            found[role] = str(place)
        else:
            remedy = (
                "push-data pushes its rows, and DATA names them" if role == DATA else f"give it with ARGS='--{role} FOLDER'"
            )
            faults.append(f"{record['node']}: its {role} {name} (outputs {entry['outputs'][:12]}) is not on the hub; {remedy}")
            continue
        faults += _same(entry, role, found[role])
    if faults:
        raise UserError(*faults)
    return found


def _same(entry: Mapping[str, Any], role: str, where: str) -> list[str]:
    """Return whether a parent that was found is another than the one that is meant."""
    there = finished.read(Path(where)) if not entry.get("hub") else None
    if there is None or (there.record["outputs"] == entry["outputs"] and there.family != ROWS):
        return []
    return [f"{where}: is another {role} than the one that the node was made from ({entry['outputs'][:12]})"]


def _settings(record: Mapping[str, Any], stage: Stage, output: Path) -> Path:
    """Write the settings of a record that are no defaults as the file of a node."""
    usual = {field.name: config.default(field) for field in dataclasses.fields(stage.Options)}
    own = {
        key: value
        for key, value in record["config"].items()
        if key not in usual or type(value) is not type(usual[key]) or value != usual[key]
    }
    path = output / "settings" / f"{record['node']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"stage": record["stage"], **own}, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def _make(stage: Stage, flags: Sequence[str], launch: str, threads: int | None) -> int:
    """Run the stage's script, with as many threads as the record says: sums of floats depend on it."""
    from pipeline.commands.make import run

    if threads and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    words = shlex.split(launch)
    return run([*([sys.executable] if words == ["python"] else words), str(stage.script), *flags])


def _measured(output: Path, made: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of the node that was made, measured as those of the record were."""
    from pipeline.commands import evaluate
    from pipeline.evaluation import blocks

    block = blocks.own(made)
    if block is None:
        settings = output / "settings" / evaluate.SETTINGS
        settings.write_text(yaml.safe_dump(dict(options)), encoding="utf-8")
        summary = evaluate.pending(["--runs", str(output), "--config", str(settings)]).run()
        block = blocks.of(made, summary)
    return block.figures if block else {}


if __name__ == "__main__":
    sys.exit(process.execute(main))

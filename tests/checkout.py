"""A copy of the project with stages and profiles that it does not ship, as somebody would add them."""

import json
import os
import shutil
from pathlib import Path

from pipeline import ROOT

STAGES = ROOT / "tests" / "stages"  # a stage of two parents, and one that hands on rows
_CLOCK = {"train_runtime", "train_tokens_per_second", "step_time"}  # and what lies under "profiling/"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "profiles")


def copied(folder):
    """Copy the project into a folder and add the stages that are only for tests; return the folder."""
    for name in ("pipeline", "stages", "data_recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=_LEFT_OUT)
    for path in (ROOT / "Makefile", ROOT / "pyproject.toml"):
        shutil.copy(path, folder / path.name)
    for path in STAGES.glob("*.py"):
        shutil.copy(path, folder / "stages" / path.name)
    return folder


def write_profile(checkout, name, **nodes):
    """Write a profile into a checkout, a node for each keyword: its file's text, `_` standing for a dash in its name."""
    folder = checkout / "stages" / "profiles" / name
    folder.mkdir(parents=True, exist_ok=True)
    for node, text in nodes.items():
        (folder / f"{node.replace('_', '-')}.yaml").write_text(text)
    return folder


def environment(checkout, **variables):
    """Return the environment in which the checkout's own code runs."""
    return os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}


def runs(checkout, profile):
    """Return where the nodes of a profile lie."""
    return Path(checkout) / "runs" / profile


def logged(folder: Path) -> list[dict[str, object]]:
    """Return the trainer's log without what a clock says; nothing where nothing was trained."""
    if not (folder / "log.jsonl").exists():
        return []
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = {key for line in lines for key in line if key in _CLOCK or key.startswith("profiling/")}
    return [{key: repr(value) for key, value in line.items() if key not in timed} for line in lines]

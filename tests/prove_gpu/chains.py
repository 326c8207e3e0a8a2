"""Every stage of `tiny` and `smollm2`, made and evaluated by make's own command, with the figures that are promised of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.chain import manifest, profile
from pipeline.commands import evaluate
from pipeline.system.config import read_profile
from tests import figures
from tests.prove_gpu import Row

PROFILES = ("tiny", "smollm2")
_FEW = {"max_steps": 2, "per_device_train_batch_size": 1}
_ROWS = {"rows": 4, "rows_of": {}, "samples": 1, "max_new_tokens": 4, "resamples": 20}


def rows(place: Path, small: bool) -> Iterator[Row]:
    """Make the profiles and yield what became of each node, and the promised figures."""
    for name in PROFILES:
        whole = profile.load(shortened(name, place) if small else profile.find(name))
        runs = place / "runs"
        log = place / f"{name}.log"
        environment = os.environ | {"PROFILE": str(whole.folder), "RUNS": str(runs), "GOAL": "", "GOALS": ""}
        with log.open("w") as out:
            status = subprocess.run(
                [sys.executable, "-m", "pipeline.commands", "make"], env=environment, stdout=out, stderr=subprocess.STDOUT, check=False
            ).returncode  # fmt: skip
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        yield Row(
            f"{name}: made and evaluated",
            f"status {status}{f': {last[0][:100]}' if status and last else ''}",
            "status 0",
            not status,
        )
        for node in whole.nodes:
            if (record := manifest.read(runs / whole.name / node)) is not None:
                yield Row(f"{name}: {node}", told(record))
        if not status:
            yield from promised(name, runs / whole.name, small)


def shortened(name: str, place: Path) -> Path:
    """Return a copy of a profile that takes two steps a node and evaluates a few rows."""
    folder = place / name
    folder.mkdir()
    for file in profile.find(name).glob("*.yaml"):
        values = read_profile(file)
        if file.name == evaluate.SETTINGS:
            values |= _ROWS
        elif "max_steps" in values or "per_device_train_batch_size" in values:
            values |= _FEW
        (folder / file.name).write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def told(record: dict[str, Any]) -> str:
    """Return what a node's record says of its training."""
    seconds = record.get("training_seconds")
    if not seconds:
        return f"{record['seconds']:.0f} s"
    return (
        f"{record['steps']:,} steps, {record['tokens'] / seconds:,.0f} tokens/s in training, {record['seconds']:.0f} s in all, "
        f"{record['peak_memory_bytes'] / 1e9:.2f} GB at most"
    )


def promised(name: str, runs: Path, small: bool) -> Iterator[Row]:
    """Yield the figures of the profile's evaluation beside their bounds, which nothing this small can hold."""
    found = json.loads((runs / "evaluate.json").read_text(encoding="utf-8"))
    for what, read, reached, bound in figures.FIGURES[name]:
        value = read(found)
        yield Row(
            f"{name}: {what}",
            f"{value:.3f}",
            f"{bound}{', not held at small sizes' if small else ''}",
            None if small else reached(value),
        )

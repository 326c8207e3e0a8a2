"""A profile's finished stages as the page shows them, and the digest of all that it is made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.system.errors import UserError
from pipeline.system.hardware import watts
from pipeline.report import batches

NAMES = {"pretrain": "Pretraining", "sft": "SFT", "dpo": "DPO", "control": "Control"}


@dataclass(frozen=True)
class Stage:
    """A finished stage as the page shows it."""

    folder: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name in records."""
        return str(self.record["stage"])

    @property
    def title(self) -> str:
        """Its name for people; a model that was adopted was not pretrained here."""
        return NAMES.get(self.name, self.name) if self.name != "pretrain" or "metrics" in self.record else "Base, adopted"

    @property
    def parent(self) -> str:
        """Path or hub id of what it was made from, without this machine's folders."""
        made = self.record["parents"]
        return str(made[0].get("hub") or Path(made[0]["path"]).name) if made else ""

    @property
    def recipe(self) -> str:
        """Name of its recipe, without this machine's folders."""
        return "/".join(Path(self.record["recipe"]["name"]).parts[-2:])

    @cached_property
    def log(self) -> list[tuple[int, float]]:
        """Tokens and training loss of every logged step."""
        path = self.folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        entries = [json.loads(line) for line in lines]
        return [(int(entry["tokens"]), float(entry["loss"])) for entry in entries]

    @property
    def rate(self) -> float | None:
        """Tokens a second of training; None where nothing was trained."""
        seconds = self.record.get("training_seconds")
        return self.record["tokens"] / seconds if seconds else None

    @property
    def energy(self) -> float:
        """Watt-hours, estimated from the time and what the hardware is assumed to draw."""
        return float(watts(self.record["hardware"]) * self.record["seconds"] / 3600)


def stages(runs: Path) -> list[Stage]:
    """Return the finished stages of a folder in the order of the chain; UserError if there is none."""
    found = [Stage(path.parent, manifest.read(path.parent) or {}) for path in runs.glob(f"*/{manifest.NAME}")]
    if not found:
        raise UserError(f"{runs}: no finished stage; run make first")
    order = [*NAMES, *sorted(stage.name for stage in found)]
    return sorted(found, key=lambda stage: order.index(stage.name))


def inputs(runs: Path, stages: Sequence[Stage]) -> str:
    """Return the digest of all that the page is made from: records, logs, evaluation, recipes and our own code."""
    from pipeline.system import hashes
    from pipeline.data import recipe as recipes

    found: dict[str, Any] = {
        "code": manifest.sources("report.py"),
        "libraries": manifest.versions(),
        "profile": runs.resolve().name,
    }
    for stage in stages:
        log = stage.folder / "log.jsonl"
        found[stage.name] = [stage.record, hashes.sha256(log) if log.is_file() else None]
        try:
            shape = batches.SHAPES.get(stage.name)
            found[f"recipe of {stage.name}"] = recipes.of(stage.record, shape).digest(shape) if stage.log and shape else None
        except UserError as error:
            found[f"recipe of {stage.name}"] = list(error.faults)
    return manifest.digest([found, manifest.read(runs, "evaluate.json")])

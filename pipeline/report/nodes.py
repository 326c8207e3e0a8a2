"""A profile's finished nodes as the page shows them, and the digest of all that it is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.chain import finished, manifest
from pipeline.chain.finished import Finished
from pipeline.chain.stage import PARENT
from pipeline.data import mixture
from pipeline.system import hashes
from pipeline.system.errors import UserError
from pipeline.system.hardware import watts

RANDOM = "random"  # what a node starts from that takes no weights of its parent


@dataclass(frozen=True)
class Parent:
    """What a node was made from, in one of its roles."""

    role: str
    name: str  # of the node, of the folder, or the hub id; no folder of this machine
    outputs: str  # the digest that the node names; empty for a hub id
    here: str  # the node of this page that lies there; empty where it lies elsewhere
    agrees: bool | None  # whether that node is the one that it was made from; None where none lies here
    note: str  # what is taken from it, where that is not all

    @property
    def label(self) -> str:
        """What an arrow from it says."""
        return ", ".join(text for text in ("" if self.role == PARENT else self.role, self.note) if text)


@dataclass(frozen=True)
class Node:
    """A finished node with all that the page tells of it."""

    made: Finished
    parents: Sequence[Parent]

    @property
    def name(self) -> str:
        """Its name in the profile, which is that of its folder."""
        return self.made.name

    @property
    def heading(self) -> str:
        """Its name with the title of its kind, where that says more."""
        same = self.name.casefold() == self.made.title.casefold()
        return self.name if same else f"{self.name}: {self.made.title}"

    @property
    def record(self) -> Mapping[str, Any]:
        """Its record."""
        return self.made.record

    @property
    def control_of(self) -> str:
        """The node that it is a control of; empty where it is none."""
        return self.made.control_of

    @property
    def recipe(self) -> str:
        """Name of its recipe, without this machine's folders."""
        return "/".join(Path(self.record["recipe"]["name"]).parts[-2:])

    @property
    def read(self) -> list[str]:
        """How its rows were read, in words, where they were streamed or have shares."""
        return mixture.told(self.record["recipe"])

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Every logged step."""
        path = self.made.folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    @cached_property
    def log(self) -> list[tuple[int, float]]:
        """Tokens and training loss of every logged step."""
        return [(int(entry["tokens"]), float(entry["loss"])) for entry in self.entries]

    @property
    def rate(self) -> float | None:
        """Tokens a second of training; None where nothing was trained."""
        seconds = self.record.get("training_seconds")
        return self.record["tokens"] / seconds if seconds else None

    @property
    def energy(self) -> float:
        """Watt-hours, estimated from the time and what the hardware is assumed to draw."""
        return float(watts(self.record["hardware"]) * self.record["seconds"] / 3600)


def nodes(runs: Path) -> list[Node]:
    """Return the finished nodes of a folder, parents first; UserError if there is none."""
    found = finished.finished(runs)
    if not found:
        raise UserError(f"{runs}: no finished node; run make first")
    here = {made.folder.resolve(): made for made in found}
    return [Node(made, [_parent(made, entry, here) for entry in made.record["parents"]]) for made in found]


def _parent(made: Finished, entry: Mapping[str, Any], here: Mapping[Path, Finished]) -> Parent:
    beside = here.get(Path(finished.place(made.folder, entry)).resolve()) if "hub" not in entry else None
    name = entry.get("hub") or entry.get("node") or Path(entry["path"]).name
    note = "only its tokenizer" if entry["role"] == PARENT and made.record["starts_from"] == RANDOM else ""
    agrees = entry.get("outputs") == beside.record["outputs"] if beside else None
    return Parent(entry["role"], str(name), str(entry.get("outputs", "")), beside.name if beside else "", agrees, note)


def inputs(runs: Path, shown: Sequence[Node]) -> str:
    """Return the digest of all that the page is made from: records, logs, evaluation, recipes and the code that makes it."""
    scripts = [file for node in shown if node.log for file in _modules(node)]
    found: dict[str, Any] = {
        "code": manifest.sources(Path(__file__).with_name("page.py"), *scripts),
        "libraries": manifest.versions(),
        "profile": runs.resolve().name,
    }
    for node in shown:
        log = node.made.folder / "log.jsonl"
        found[node.name] = [node.record, hashes.sha256(log) if log.is_file() else None, _recipe(node)]
    return hashes.digest([found, manifest.read(runs, "evaluate.json")])


def _modules(node: Node) -> list[Path]:
    """Return the files that make a node's batches: its script and what its options choose; none where the script is gone."""
    try:
        return [node.made.stage.script, *node.made.stage.modules(node.made.options)]
    except UserError:
        return []


def _recipe(node: Node) -> Any:
    """Return the digest that a trained node's recipe has now, or why it has none."""
    from pipeline.data import recipe as recipes

    made_by = node.record["recipe"]
    if not node.log or not made_by["type"]:
        return None
    try:
        return recipes.of(node.record).digest(made_by["type"])
    except UserError as error:
        return list(error.faults)

"""The first screen: what was made, from what, how good each node is against its rivals, and one question asked of all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chain import finished
from pipeline.report.figures import Table
from pipeline.report.held_out import Cell
from pipeline.report.nodes import Node
from pipeline.system.errors import UserError
from pipeline.system.words import counted


@dataclass(frozen=True)
class Result:
    """The figure that a node is judged by, beside those of its rivals on the same rows."""

    name: str
    title: str
    metric: str
    meaning: str
    own: str
    rivals: Sequence[tuple[str, str]]  # who, and its figure
    difference: str  # against the rival that the node is judged against, in words
    against: str
    worse: bool


@dataclass(frozen=True)
class Story:
    """The first screen of the page."""

    lead: Sequence[str]  # sentences
    results: Sequence[Result]
    prompt: str  # held out; empty where nobody was asked
    answers: Mapping[str, str]
    pictures: Cell  # that the prompt is about


def told(
    runs: Path, nodes: Sequence[Node], tables: Sequence[Table], samples: Sequence[tuple[Mapping[str, Any], Cell]]
) -> Story:
    """Return the story of a profile's finished nodes; `samples`: prompts with answers, and the pictures that each is about."""
    none: tuple[Mapping[str, Any], Cell] = ({"prompt": "", "answers": {}}, Cell())
    asked, seen = max(
        samples, key=lambda sample: len(sample[0]["answers"]), default=none
    )  # the first that most models were asked
    results = [result for table in tables if (result := _result(table))]
    return Story(list(_lead(runs, nodes)), results, asked["prompt"], asked["answers"], seen)


def _lead(runs: Path, nodes: Sequence[Node]) -> Iterator[str]:
    by_name = {node.name: node for node in nodes}
    try:
        end = by_name[finished.released(runs).name]
    except UserError:  # several could be meant, or the profile is at fault
        end = None
    if end:
        size = sum(
            entry["size"] for name, entry in end.record["files"].items() if name.endswith(".safetensors") and "/" not in name
        )
        about = _about(end)
        yield f"{end.name} is what came out, {about[:1].lower()}{about[1:]}" if about else f"{end.name} is what came out"
        line = [by_name[made.name] for made in finished.lineage(end.made.folder) if made.name in by_name]
        recipes = dict.fromkeys(node.recipe for node in line if node.recipe)
        rows = sum(node.record["recipe"].get("kept", 0) for node in line)
        hardware = end.record["hardware"]
        machine = ", ".join(hardware["accelerators"]) or f"{hardware['threads']} of {hardware['cores']} CPU cores"
        yield (
            f"Made by {' → '.join(node.name for node in line)} from {counted(rows, 'row')} of {_listed(recipes)}, "
            f"in {sum(node.record['seconds'] for node in line):,.0f} s on {machine}; {size / 1e6:,.1f} MB of weights"
        )
    controls = [f"{node.name}, of {node.control_of}" for node in nodes if node.control_of]
    if controls:
        yield f"A control is the same training without what its parent had learned: {_listed(controls)}"


def _about(node: Node) -> str:
    try:
        return node.made.stage.about.rstrip(".")
    except UserError:  # its script is gone
        return ""


def _listed(names: Iterator[str] | Sequence[str] | Mapping[str, Any]) -> str:
    *others, last = list(names) or ["nothing"]
    return f"{', '.join(others)} and {last}" if others else last


def _result(table: Table) -> Result | None:
    block, judged = table.block, table.block.primary
    if not judged or not block.own:
        return None
    metric = judged["metric"]
    rivals = [
        (heading, cell)
        for label, heading in zip(block.labels, block.headings, strict=True)
        if label != block.own and (cell := block.cell(metric, label))
    ]
    return Result(
        table.name, block.found["title"], metric, re.split("[,;:]", block.description(metric)["meaning"])[0], block.cell(metric, block.own),
        rivals, block.difference(judged), judged["against"], block.is_worse(judged),
    )  # fmt: skip

"""Several runs of the same nodes side by side: figures with intervals, losses, and what differs in how they were made."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.evaluation import blocks, table
from pipeline.evaluation.blocks import Block
from pipeline.report import charts, templates
from pipeline.report.nodes import Node, inputs
from pipeline.report.nodes import nodes as nodes_of
from pipeline.system import hashes

_MISSING = "not there"


@dataclass(frozen=True)
class Run:
    """The finished nodes of one folder with their evaluation."""

    label: str
    folder: Path
    nodes: Mapping[str, Node]
    summary: Mapping[str, Any] | None

    def block(self, name: str) -> Block | None:
        """Return the figures of one of its nodes."""
        return blocks.of(self.nodes[name].record, self.summary)


@dataclass(frozen=True)
class Compared:
    """A node as several runs have made it."""

    name: str
    made: Sequence[tuple[Run, Node, Block | None]]

    @property
    def heading(self) -> str:
        """Its name with the title of its kind."""
        return self.made[0][1].heading

    @property
    def told(self) -> str:
        """Say whether the runs made the same weights."""
        outputs = {node.record["outputs"] for _, node, _ in self.made}
        if len(outputs) == 1:
            return f"The runs made the same files, outputs {next(iter(outputs))[:12]}."
        return f"{len(outputs)} different results of {len(self.made)} runs."

    @property
    def _metrics(self) -> dict[str, Mapping[str, Any]]:
        """Every metric that one of the runs has of the node, with its description."""
        found: dict[str, Mapping[str, Any]] = {}
        for _, _, block in self.made:
            found |= {name: block.description(name) for name in block.figures} if block else {}
        return found

    def _figures(self, metric: str) -> list[Mapping[str, float] | None]:
        return [block.figures.get(metric) if block else None for _, _, block in self.made]

    @property
    def rows(self) -> list[tuple[str, list[str], str]]:
        """Each metric with its figure in each run, and their mean with the least and the most."""
        found = []
        for metric, described in self._metrics.items():
            figures = self._figures(metric)
            cells = [table.figure(described, figure) if figure else "" for figure in figures]
            values = [figure["value"] for figure in figures if figure]
            spread = {"value": statistics.fmean(values), "low": min(values), "high": max(values)}
            found.append((metric, cells, table.figure(described, spread) if len(values) > 1 else "–"))
        return found

    @property
    def forests(self) -> Iterator[tuple[charts.Forest, str]]:
        """Yield a picture of each metric that has a meaning, an interval for each run."""
        for (metric, cells, _), described in zip(self.rows, self._metrics.values(), strict=True):
            figures = self._figures(metric)
            shown = {
                run.label: (figure, cell)
                for (run, _, _), figure, cell in zip(self.made, figures, cells, strict=True)
                if figure and cell
            }
            if described["meaning"] and shown:
                text = "; ".join(f"{label} {cell}" for label, (_, cell) in shown.items())
                yield (
                    charts.forest(metric, f"{described['meaning']}. {text}", shown, described["unit"] == "share"),
                    described["meaning"],
                )

    @property
    def charts(self) -> list[charts.Chart]:
        """The training losses of the runs in one frame; none where no run logged any."""
        curves = {run.label: node.log for run, node, _ in self.made if node.log}
        text = ". ".join(f"{label}: {charts.described(points)}" for label, points in curves.items())
        return [charts.loss(self.heading, text, curves, {})] if curves else []

    @property
    def differs(self) -> list[tuple[str, list[str]]]:
        """Everything by which the runs were made and that is not the same in all: what, and what it is in each."""
        facts = [dict(_facts(node.record)) for _, node, _ in self.made]
        keys = dict.fromkeys(key for one in facts for key in one)
        return [
            (key, [one.get(key, _MISSING) for one in facts])
            for key in keys
            if len({one.get(key, _MISSING) for one in facts}) > 1
        ]


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield in words all that a node was made by: settings, rows, parents, code, libraries, machine."""
    for key, value in record["config"].items():
        yield key, str(value)
    yield "seed", str(record["seed"])
    recipe = record["recipe"]
    yield "rows", f"{Path(recipe['name']).name} {str(recipe.get('digest') or '')[:12]}".strip()
    for entry in record["parents"]:
        yield (
            f"made from ({entry['role']})",
            f"{entry.get('node') or entry.get('hub') or 'a model'} {str(entry.get('outputs', ''))[:12]}",
        )
    code = hashes.digest(record["code"]["files"])[:12]
    yield "code", code
    for name, version in record["versions"].items():
        yield name, str(version)
    for key in ("machine", "accelerators", "threads", "processes"):
        if key in record["hardware"]:
            yield key, str(record["hardware"][key] or "none")


def read(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in several folders, named by what tells the folders apart; UserError where one has no finished node."""
    found = []
    for folder, label in zip(folders, labels(folders), strict=True):
        found.append(Run(label, folder, {node.name: node for node in nodes_of(folder)}, manifest.read(folder, "evaluate.json")))
    return found


def labels(folders: Sequence[Path]) -> list[str]:
    """Return the shortest names of folders by which no two are the same: of folders alike in their last part, the part before."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts))):
        named = ["/".join(part[-depth:]) for part in parts]
        if len(set(named)) == len(named):
            shared = 0
            while depth - shared > 1 and len({part[-1 - shared] for part in parts}) == 1:
                shared += 1
            return ["/".join(part[-depth : len(part) - shared]) for part in parts]
    return [str(folder) for folder in folders]


def digest(runs: Sequence[Run]) -> str:
    """Return the digest of all that the page is made from."""
    code = manifest.sources(Path(__file__))
    return hashes.digest([code, [[run.label, inputs(run.folder, list(run.nodes.values()))] for run in runs]])


def render(runs: Sequence[Run], inputs: str) -> str:
    """Return the page as HTML; every text in it is escaped by the template engine."""
    names = dict.fromkeys(name for run in runs for name in run.nodes)
    shared = [name for name in names if all(name in run.nodes for run in runs)]
    compared = [Compared(name, [(run, run.nodes[name], run.block(name)) for run in runs]) for name in shared]
    environment = templates.environment()
    environment.filters |= {"brief": charts.brief}
    page: str = environment.get_template("several.html.jinja").render(
        inputs=inputs, labels=[run.label for run in runs], nodes=compared, alone=[name for name in names if name not in shared]
    )
    return page

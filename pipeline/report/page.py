"""What the page shows, gathered from a profile's records, and the page itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.report import batches, charts, figures, gaming, graph, story, templates
from pipeline.report.figures import Table
from pipeline.report.held_out import HeldOut
from pipeline.report.nodes import Node
from pipeline.system.errors import UserError
from pipeline.system.hardware import ACCELERATOR_WATTS, CORE_WATTS


def render(runs: Path, nodes: Sequence[Node], inputs: str) -> str:
    """Return the page as HTML; every text in it is escaped by the template engine."""
    environment = templates.environment()
    environment.filters |= {"visible": visible, "brief": charts.brief}
    summary = manifest.read(runs, "evaluate.json")
    tables, rows = figures.tables(nodes, summary), HeldOut(nodes, summary)
    samples = [(sample, rows.pictures(sample)) for sample in summary["samples"]] if summary else []
    blocks = summary["nodes"].items() if summary else ()
    page: str = environment.get_template("page.html.jinja").render(
        profile=runs.resolve().name, inputs=inputs, nodes=nodes, core_watts=CORE_WATTS, accelerator_watts=ACCELERATOR_WATTS,
        story=story.told(runs, nodes, tables, samples), overview=graph.overview(nodes), graph=graph.draw(nodes),
        charts=_charts(nodes, {table.name: table for table in tables}), rewards=_rewards(nodes), summary=summary, tables=tables,
        outdated=figures.outdated(nodes, summary), batches=_batches(nodes), samples=samples,
        predicted=[said for node in nodes if not node.control_of and (said := rows.predicted(node.name))],
        retrieval=[found for name, block in blocks if (found := rows.retrieval(name, block))],
    )  # fmt: skip
    return page


def visible(text: str) -> str:
    """Return a text whose line breaks, tabs, control characters and changes of direction can be seen."""

    def shown(letter: str) -> str:
        if letter == "\n":
            return "↵\n"
        if letter == "\t":
            return "⇥\t"
        if letter < " ":
            return chr(0x2400 + ord(letter))
        return f"⟨U+{ord(letter):04X}⟩" if "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069" else letter

    return "".join(map(shown, text))


def _charts(nodes: Sequence[Node], tables: Mapping[str, Table]) -> list[charts.Chart]:
    """Return loss against tokens of each node that has a log; a control is drawn beside what it controls."""
    logged = {node.name: node for node in nodes if node.log}
    drawn = []
    for name, node in logged.items():
        if node.control_of in logged and _same_data(node, logged[node.control_of]):
            continue
        beside = [other for other in logged.values() if other.control_of == name and _same_data(node, other)]
        curves = {f"{one.name}, training": one.log for one in (node, *beside)}
        lines = tables[name].lines(node) if name in tables else {}
        kept = {line: value for line, value in lines.items() if math.isfinite(value)}
        said = [f"{curve}: {charts.described(points)}" for curve, points in curves.items()]
        text = ". ".join(said + [f"{line}: {value:.3f}" for line, value in kept.items()])
        drawn.append(charts.loss(node.heading, text, curves, kept))
    return drawn


def _same_data(one: Node, other: Node) -> bool:
    return bool(one.record["recipe"]["digest"] == other.record["recipe"]["digest"])


def _rewards(nodes: Sequence[Node]) -> list[charts.Chart]:
    """Return rewards against KL of each node that sampled answers, in words also where one was gamed."""
    drawn = []
    for node in nodes:
        if found := gaming.curves(node.entries):
            given = node.record["config"].get("rewards") or {}
            weights = {name: one.get("weight", 1.0) if isinstance(one, Mapping) else one for name, one in given.items()}
            drawn.append(charts.rewards(node.heading, ". ".join(gaming.told(found, weights)), found))
    return drawn


def _batches(nodes: Sequence[Node]) -> list[tuple[Node, batches.Batch | str]]:
    """Return the first batch of each node that was trained here, or why it can't be made again."""
    found: list[tuple[Node, Any]] = []
    for node in nodes:
        if node.log:
            try:
                found.append((node, batches.first(node.made)))
            except UserError as error:
                found.append((node, "; ".join(error.faults)))
    return found

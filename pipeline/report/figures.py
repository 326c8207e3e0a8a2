"""The figures of each node as the page shows them: pictures, a table, and differences in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation import blocks
from pipeline.evaluation.blocks import Block
from pipeline.report import charts
from pipeline.report.nodes import Node
from pipeline.system.errors import UserError

LOGGED = "loss"  # what a log calls the loss that was trained on; a metric of this name is of the same kind


@dataclass(frozen=True)
class Table:
    """A node's figures: a row for each metric, a column for each model."""

    name: str  # of the node
    heading: str
    of: str  # the rows that were measured on, in words, without this machine's folders
    block: Block

    @property
    def rows(self) -> list[tuple[str, str, list[str]]]:
        """Each metric with its meaning and its figures in the order of the columns."""
        metrics = self.block.found["figures"]
        return [
            (metric, self.block.description(metric)["meaning"], [self.block.cell(metric, label) for label in self.block.labels])
            for metric in metrics
        ]

    @property
    def differences(self) -> list[tuple[str, str, str, bool]]:
        """Each comparison: metric, rival, difference in words, whether the node is judged by it."""
        return [
            (item["metric"], item["against"], self.block.difference(item), item == self.block.primary)
            for item in self.block.comparisons
        ]

    @property
    def skipped(self) -> Mapping[str, int]:
        """What was not measured: reason → count."""
        return dict(self.block.found.get("skipped", {}))

    def forests(self) -> Iterator[tuple[charts.Forest, str]]:
        """Yield a picture of each metric that has a meaning, with that meaning; the table has all."""
        for metric, meaning, cells in self.rows:
            figures = self.block.found["figures"][metric]
            found = {label: (figures[label], cell) for label, cell in zip(self.block.labels, cells, strict=True) if cell}
            if meaning and found:
                text = "; ".join(f"{label} {cell}" for label, cell in zip(self.block.labels, cells, strict=True) if cell)
                share = self.block.description(metric)["unit"] == "share"
                yield charts.forest(metric, f"{meaning}. {text}", found, share), meaning

    def lines(self, node: Node) -> dict[str, float]:
        """Return held-out figures that a node's training loss can be held against, where it is of their kind."""
        figures, block = self.block.found["figures"].get(LOGGED, {}), self.block
        try:
            judged = any(against.metric == LOGGED for against in node.made.stage.judged_by(node.made.options))
        except UserError:  # its script is gone
            judged = False
        if not judged and not any(map(block.is_baseline, figures)):
            return {}
        shown = [label for label in figures if block.role(label) != "control"]  # a control has a curve of its own
        return {f"{label}, held out": figures[label]["value"] for label in shown} | block.bounds()


def tables(nodes: Sequence[Node], summary: Mapping[str, Any] | None) -> list[Table]:
    """Return the figures of the evaluation in its own order, then those that a stage measured by itself."""
    by_name = {node.name: node for node in nodes}
    found = {name: Block(block) for name, block in summary["nodes"].items()} if summary else {}
    for node in nodes:
        if node.name not in found and (block := blocks.own(node.record)):
            found[node.name] = block
    return [_table(name, by_name.get(name), block) for name, block in found.items()]


def _table(name: str, node: Node | None, block: Block) -> Table:
    of = str(block.found["of"])
    return (
        Table(name, node.heading, of.replace(node.record["recipe"]["name"] or "\0", node.recipe), block)
        if node
        else Table(name, name, of, block)
    )


def outdated(nodes: Sequence[Node], summary: Mapping[str, Any] | None) -> list[str]:
    """Return the trained nodes that are no longer those that were measured, or were not."""
    if not summary:
        return []
    measured = summary["measured"]
    trained = [node for node in nodes if "steps" in node.record and (node.name in measured or not blocks.own(node.record))]
    return [node.name for node in trained if measured.get(node.name) != node.record["outputs"]]

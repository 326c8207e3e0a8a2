"""A node's figures as its evaluation wrote them, with what each metric means: what report, card and gate read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation import table
from pipeline.evaluation.intervals import FEW

_NODE, _BASELINE = "node", "baseline"


@dataclass(frozen=True)
class Block:
    """The figures of a node and of what it is held against, all of the same held-out rows."""

    found: Mapping[str, Any]  # one of the `nodes` of evaluate.json

    @property
    def labels(self) -> list[str]:
        """The names of its models, the columns of a table."""
        return list(self.found["models"])

    @property
    def own(self) -> str:
        """The name of the node's own column; empty where nothing of it was measured."""
        return next((label for label, model in self.found["models"].items() if model["role"] == _NODE), "")

    @property
    def figures(self) -> dict[str, Mapping[str, float]]:
        """The node's own figures by metric; empty where nothing of it was measured."""
        own = self.own
        return {metric: found[own] for metric, found in self.found["figures"].items() if own in found}

    @property
    def comparisons(self) -> Sequence[Mapping[str, Any]]:
        """How the node differs from the others."""
        return list(self.found["comparisons"])

    @property
    def primary(self) -> Mapping[str, Any] | None:
        """The comparison that the node is judged by; None where nothing of that kind was measured."""
        return self.found["primary"] or None

    def role(self, label: str) -> str:
        """Return what a model is to the node."""
        return str(self.found["models"][label]["role"])

    def description(self, metric: str) -> Mapping[str, Any]:
        """Return meaning, unit and direction of a metric, and whether it is a bound."""
        found: Mapping[str, Any] = self.found["metrics"][metric]
        return found

    def cell(self, metric: str, label: str) -> str:
        """Return a figure in words; empty where that model has none."""
        found = self.found["figures"][metric].get(label)
        return table.figure(self.description(metric), found) if found else ""

    def difference(self, comparison: Mapping[str, Any]) -> str:
        """Return a comparison in words."""
        return table.difference(self.description(comparison["metric"]), comparison)

    def is_below(self, comparison: Mapping[str, Any]) -> bool:
        """Say whether the interval of a difference lies on the wrong side of zero, of however few items."""
        way = self.description(comparison["metric"])["better"]
        return bool(comparison["high"] < 0 if way == "more" else comparison["low"] > 0 if way == "less" else False)

    def is_worse(self, comparison: Mapping[str, Any]) -> bool:
        """Say whether the node is worse than its rival, clear of zero; of too few items nothing is."""
        return comparison.get("n", FEW) >= FEW and self.is_below(comparison)

    @property
    def headings(self) -> list[str]:
        """The headings of a table's columns: each model with what it is to the node."""
        return [table.heading(label, model) for label, model in self.found["models"].items()]

    @property
    def asked(self) -> list[str]:
        """How models were asked or baselines counted, in sentences without a full stop."""
        return [f"{label} was {how}" for label, model in self.found["models"].items() if (how := table.asked(model))]

    def bounds(self) -> dict[str, float]:
        """Return what no loss of a model can pass."""
        bounds = [name for name in self.found["figures"] if self.description(name).get("bound")]
        return {
            name: next(iter(self.found["figures"][name].values()))["value"] for name in bounds if self.found["figures"][name]
        }

    def is_baseline(self, label: str) -> bool:
        """Say whether a column is of no model, but of a baseline."""
        return self.role(label) == _BASELINE


def of(record: Mapping[str, Any], summary: Mapping[str, Any] | None) -> Block | None:
    """Return the figures of exactly these outputs, from the evaluation or else from the node's own record; None where there are none."""
    node = record["node"]
    if summary and node in summary["nodes"] and summary["measured"].get(node) == record["outputs"]:
        return Block(summary["nodes"][node])
    return own(record)


def own(record: Mapping[str, Any]) -> Block | None:
    """Return the figures that a stage measured by itself and put in its record; None where it has none."""
    found = record.get("evaluation")
    return Block(found) if found else None

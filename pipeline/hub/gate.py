"""What may be pushed: nodes that are as they were made, evaluated, not worse than their rival, and from a clean tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.chain import verify
from pipeline.chain.finished import Finished, lineage
from pipeline.evaluation import blocks


def _worth(node: Finished, summary: Mapping[str, Any] | None, path: Path) -> list[str]:
    """Return why the evaluation does not speak for a node."""
    name = node.name
    if not node.trained:  # nothing was trained that could be worse
        return []
    if node.control_of:
        return [f"{name}: a control of {node.control_of}, made to be compared with and not to be used"]
    block = blocks.of(node.record, summary)
    if block is None:
        if (summary or {}).get("measured", {}).get(name, node.record["outputs"]) != node.record["outputs"]:
            return [f"{name}: {path} measured another {name}; make evaluate"]
        return [f"{name}: not evaluated: {path} {'has no figures of it' if summary else 'is missing'}; make evaluate"]
    found = block.primary
    if found is None:
        return [f"{name}: {path} has no figure that holds it against its parent or a baseline"]
    rivals = [found, *_baselines(block, found)]
    if all(map(block.is_below, rivals)):  # a push is refused on less evidence than a verdict needs
        told = "; ".join(f"{one['against']} by {one['metric']}: {block.difference(one)}" for one in rivals)
        return [f"{name}: worse than {told}"]
    return []


def _baselines(block: blocks.Block, found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the other baselines of the metric that a node is judged by, where its rival is one: the easiest must be beaten."""
    return [
        one
        for one in block.comparisons
        if one["role"] == found["role"] == "baseline"
        and one["metric"] == found["metric"]
        and one["against"] != found["against"]
    ]


def reasons(nodes: Iterable[Finished], summary: Mapping[str, Any] | None, path: Path) -> list[str]:
    """Return every reason not to push finished nodes; `path` is where the summary of the evaluation lies or should lie."""
    found: dict[str, None] = {}  # ordered, each once: nodes share their ancestors
    for node in nodes:
        for older in lineage(node.folder):
            dirty = f"{older.name}: made from a tree with changes that no commit holds; commit them and make it again"
            found |= dict.fromkeys(
                [*verify.agrees(older), *verify.descends(older)[0], *([dirty] * older.record["code"]["dirty"])]
            )
        found |= dict.fromkeys(_worth(node, summary, path))
    return list(found)

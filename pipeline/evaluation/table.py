"""The evaluation in words: a table for each node, the paired differences, and a few prompts answered side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluation.intervals import FEW

_GAP = 2  # blanks between columns
_CUT = 160  # characters of a reply that are printed


def figure(metric: Mapping[str, str], estimate: Mapping[str, float]) -> str:
    """Return a figure with its interval: shares in per cent, all else as it is. `metric` has at least a `unit`."""
    scale, sign, digits = (100, "%", 1) if metric["unit"] == "share" else (1, "", 3)
    value, low, high = (f"{scale * estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{sign} [{low}, {high}]"


def difference(metric: Mapping[str, str], comparison: Mapping[str, Any]) -> str:
    """Return a paired difference with its interval and what it says: of shares in percentage points."""
    scale, digits = (100, 1) if metric["unit"] == "share" else (1, 3)
    unit = {"share": " points", "nats": " nats", "bits": " bits", "tokens": " tokens"}.get(metric["unit"], "")
    low, high = (f"{scale * comparison[key]:.{digits}f}" for key in ("low", "high"))
    said = f"{scale * comparison['value']:+.{digits}f}{unit} [{low}, {high}]"
    return f"{said}, {verdict(comparison)}" if metric["better"] else said


def verdict(comparison: Mapping[str, Any]) -> str:
    """Say whether a difference is clear of zero, and on which side; of too few items nothing is said."""
    if comparison.get("n", FEW) < FEW:
        return f"no verdict on fewer than {FEW}"
    if comparison["better"]:
        return "better, clear of zero"
    return "worse, clear of zero" if comparison["low"] > 0 or comparison["high"] < 0 else "not clearly different"


def heading(label: str, model: Mapping[str, str]) -> str:
    """Return the heading of a column: the model's name, with what it is to the node in brackets."""
    return label if model["role"] == "node" else f"{label} ({model['role']})"


def asked(model: Mapping[str, Any]) -> str:
    """Return how a model was asked, or a baseline counted and in how long; empty where there is nothing to say."""
    return f"{model['asked']}, in {model['seconds']:.0f} s" if "seconds" in model else str(model["asked"])


def render(summary: Mapping[str, Any]) -> str:
    """Return the whole evaluation as text."""
    lines: list[str] = []
    for name, block in summary["nodes"].items():
        lines += ["", *of_node(name, block)]
    if summary.get("missing"):
        lines += ["", f"not finished, so not measured: {', '.join(summary['missing'])}"]
    for sample in summary["samples"]:
        width = max(map(len, sample["answers"]), default=0) + _GAP
        lines += ["", f"> {' '.join(sample['prompt'].split())[:200]}"]
        lines += [f"  {label:<{width}}{' '.join(reply.split())[:_CUT]}" for label, reply in sample["answers"].items()]
    return "\n".join(lines)


def of_node(name: str, block: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines about one node: its figures, the differences, what could not be measured."""
    models, metrics, figures = block["models"], block["metrics"], block["figures"]
    title = f"{name}: {block['title']}" if block["title"].lower() != name.lower() else block["title"]
    yield f"{title}, on {block['of']}" if block["of"] else title
    rows = [["", *(heading(label, model) for label, model in models.items())]]
    rows += [
        [metric, *(figure(metrics[metric], of[label]) if label in of else "" for label in models)]
        for metric, of in figures.items()
    ]
    yield from columns(rows)
    yield from (f"  {label}: {asked(model)}" for label, model in models.items() if asked(model))
    if block["comparisons"]:
        yield "  paired differences on the same items, 95% intervals:"
        yield from columns([
            [f"    {one['metric']}", f"against {heading(one['against'], models[one['against']])}",
             difference(metrics[one["metric"]], one) + ("  <- judged by this" if one == block["primary"] else "")]
            for one in block["comparisons"]
        ])  # fmt: skip
    yield from (f"  warning: {line}" for line in warnings(name, block))
    yield from (f"  {metric}: {metrics[metric]['meaning']}" for metric in figures)
    yield from (f"  left out: {reason}" + (f" ({count:,})" if count > 1 else "") for reason, count in block["skipped"].items())


def warnings(name: str, block: Mapping[str, Any]) -> Iterator[str]:
    """Yield that a node is no better than rivals by the metric that it is judged by: baselines, controls, its parent."""
    metric = block["primary"]["metric"] if block["primary"] else ""
    level = [
        heading(one["against"], block["models"][one["against"]])
        for one in block["comparisons"]
        if one["metric"] == metric and not one["better"] and one.get("n", FEW) >= FEW
    ]
    if level:
        yield f"{name} is no better by {metric} than {', '.join(level[:-1])}{' and ' * (len(level) > 1)}{level[-1]}"


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, cells)) + _GAP for cells in zip(*rows, strict=True)]
    yield from ("".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table as Markdown."""
    for number, line in enumerate(lines):
        yield f"| {' | '.join(line)} |"
        if not number:
            yield "|---" * len(line) + "|"

"""What the page shows, gathered from a profile's records, and the page itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.system.errors import UserError
from pipeline.evaluation import table
from pipeline.system.hardware import ACCELERATOR_WATTS, CORE_WATTS
from pipeline.report import batches, charts
from pipeline.report.finished import Stage

_MEANINGS = {
    "loss": "nats a token on held-out rows of the stage's own kind; less is better",
    "loss_over_floor": "held-out loss over the exact entropy of the text; 1 can't be beaten",
    "generator_loss": "the generator's nats a hidden token; less is better",
    "pair_accuracy": "right answers about pairs of segments",
    "detection": "how often what was put in looks more so than what was there",
    "retrieval": "how often a text's other half is found among those of the batch",
    "completion": "facts that the base model completes right",
    "likelier": "pairs whose chosen answer is the likelier one",
    "accuracy": "pairs whose chosen answer gained more over the base model",
    "exact_match": "answers that are exactly right",
    "win_rate": "sampled answers that beat the parent's",
}


def render(runs: Path, stages: Sequence[Stage], inputs: str) -> str:
    """Return the page as HTML; every text in it is escaped by the template engine."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"visible": visible, "brief": charts.brief}
    summary = manifest.read(runs, "evaluate.json")
    by_name = {stage.name: stage for stage in stages}
    return environment.get_template("page.html.jinja").render(
        profile=runs.resolve().name, inputs=inputs, stages=stages, columns=table.COLUMNS, core_watts=CORE_WATTS,
        accelerator_watts=ACCELERATOR_WATTS, chain=_chain(by_name), made_from=_made_from(by_name), charts=_charts(by_name, summary),
        summary=summary, outdated=_outdated(by_name, summary), forests=_forests(summary) if summary else [],
        figures=_figures(summary) if summary else {}, batches=_batches(stages), meanings=_MEANINGS,
    )  # fmt: skip


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


def _made_from(stages: Mapping[str, Stage]) -> dict[str, bool | None]:
    """Say of each stage whether the parent that lies beside it is the one that it was made from; None where none does."""
    found: dict[str, bool | None] = {}
    for name, stage in stages.items():
        made = stage.record["parents"][0] if stage.record["parents"] else {}
        beside = stages.get(made.get("stage", ""))
        found[name] = made["outputs"] == beside.record["outputs"] if beside else None
    return found


def _chain(stages: Mapping[str, Stage]) -> charts.Chain:
    agrees = _made_from(stages)
    drawn: list[tuple[str, list[str], str, bool]] = []
    for name, stage in stages.items():
        recipe, made = stage.record["recipe"], stage.record["parents"]
        rows = f"{recipe['kept']:,} rows" if "kept" in recipe else "adopted as it is"
        said = [f"{_short(stage.recipe)} {recipe['digest'][:8]}"] if recipe["digest"] else []
        parent = ""
        if made:
            parent = made[0].get("stage", "") if made[0].get("stage") in stages else stage.parent
            if parent not in stages and parent not in [box[0] for box in drawn]:
                drawn.append((parent, ["from elsewhere", (made[0].get("outputs") or "a hub")[:8]], "", True))
        drawn.append((name, [*said, rows, f"made {stage.record['outputs'][:8]}"], parent, agrees[name] is not False))
    titled = {name: stage.title for name, stage in stages.items()}
    return charts.chain(
        [
            (titled.get(name, _short(name)), lines, titled.get(parent, _short(parent)), well)
            for name, lines, parent, well in drawn
        ]
    )


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"…{name[-11:]}"


def _charts(stages: Mapping[str, Stage], summary: Mapping[str, Any] | None) -> list[charts.Chart]:
    """Return loss against tokens of each stage; the control is drawn beside SFT, whose rows it reads."""
    figures = (summary or {}).get("stages", {})

    def at(stage: str, metric: str) -> float | None:
        found = figures.get(stage, {}).get(metric)
        return float(found["value"]) if found else None

    drawn = []
    for name, stage in stages.items():
        if not stage.log or (name == "control" and "sft" in stages):
            continue
        curves = {f"{stage.title}, training": stage.log}
        lines: dict[str, float | None] = {}
        if name == "pretrain" and _one_loss(stage):
            lines = {
                "unigram, held out": at("unigram", "loss"),
                "floor": at("pretrain", "floor"),
                "held out": at("pretrain", "loss"),
            }
        elif name == "sft":
            lines = {"before SFT, held out": at("pretrain", "reply_loss"), "held out": at("sft", "loss")}
            if "control" in stages and stages["control"].log:
                curves["Control (random weights), training"] = stages["control"].log
        elif name == "dpo":
            lines = {"its parent (first step)": stage.log[0][1]}
        kept = {line: value for line, value in lines.items() if value is not None and math.isfinite(value)}
        said = [f"{curve}: {charts.described(points)}" for curve, points in curves.items()]
        text = ". ".join(said + [f"{line}: {value:.3f}" for line, value in kept.items()])
        drawn.append(charts.loss(stage.title, text, curves, kept))
    return drawn


def _one_loss(stage: Stage) -> bool:
    """Say whether a pretraining loss is one part, the one that is measured on held-out text."""
    from pipeline import objectives

    return [*objectives.load(stage.record["config"].get("objective", "causal")).weights] == ["loss"]


def _figures(summary: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return metric → stage → figure in words, in the order of the printed table."""
    stages = summary["stages"]
    order = [*table.METRICS, *sorted({metric for found in stages.values() for metric in found} - set(table.METRICS))]
    rows = {metric: {name: table.figure(metric, stages[name][metric]) for name in table.COLUMNS if metric in stages.get(name, {})}
            for metric in order}  # fmt: skip
    return {metric: cells for metric, cells in rows.items() if cells}


def _forests(summary: Mapping[str, Any]) -> list[charts.Forest]:
    """Return a picture of each metric that has a meaning of its own; the table has all."""
    drawn = []
    for metric, cells in _figures(summary).items():
        if metric in _MEANINGS:
            found = {table.COLUMNS[name]: (summary["stages"][name][metric], said) for name, said in cells.items()}
            text = "; ".join(f"{name} {said}" for name, (_, said) in found.items())
            drawn.append(charts.forest(metric, f"{_MEANINGS[metric]}. {text}", found, metric in table.SHARES))
    return drawn


def _outdated(stages: Mapping[str, Stage], summary: Mapping[str, Any] | None) -> list[str]:
    """Return the stages that are no longer those that were measured, or were not."""
    measured = (summary or {}).get("measured", {})
    return [stage.title for name, stage in stages.items() if summary and measured.get(name) != stage.record["outputs"]]


def _batches(stages: Sequence[Stage]) -> list[tuple[Stage, batches.Batch | str]]:
    """Return the first batch of each stage that was trained here, or why it can't be made again."""
    found: list[tuple[Stage, batches.Batch | str]] = []
    for stage in stages:
        if stage.log:
            try:
                found.append((stage, batches.first(stage.folder, stage.record)))
            except UserError as error:
                found.append((stage, "; ".join(error.faults)))
    return found

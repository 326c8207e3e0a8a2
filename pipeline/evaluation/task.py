"""How well a fine-tuned model does its task: on held-out rows, against who did not look, every answer written down."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.data.recipe import Rows
from pipeline.data.shapes import Row
from pipeline.system.errors import UserError
from pipeline.evaluation.table import figure
from pipeline.system.hardware import device
from pipeline.chain.stage import Run
from pipeline.tasks import Prediction, Task
from pipeline.models.tokenizer import load as load_tokenizer

PREDICTIONS, CONFUSION = "predictions.jsonl", "confusion.csv"
_SAVING = ("save_strategy", "save_steps")
_SHOWN = 8  # labels of a confusion matrix that is printed


def stopping(task: Task, patience: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Trainer's arguments that keep the epoch with the best figure; UserError where others are given."""
    if not patience:
        return {}
    if faults := [
        f"{key}: with patience a checkpoint is saved after each epoch; leave it away" for key in _SAVING if key in given
    ]:
        raise UserError(*faults)
    return {
        "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "greater_is_better": True,
        "metric_for_best_model": task.primary, "restore_callback_states_from_checkpoint": True,
    }  # fmt: skip


def values(task: Task, model: Any, vocabulary: Any, rows: Sequence[Row], max_length: int) -> dict[str, float]:
    """Return the figures of a model on rows, without intervals."""
    found = task.figures(rows, task.predict(model, vocabulary, Rows(kept=list(rows)), max_length))
    model.train()
    return {name: float(one.of(one.items.sum(0))) for name, one in found.items()}


def judged(run: Run, task: Task, training: Sequence[Row], max_length: int, limit: int) -> None:
    """Judge the model that a stage hands on, as anybody would load it; write what it said and put the figures in the record."""
    found = run.recipe.rows(task.shape, "held_out", run.seed)
    held_out = found.kept
    chosen = random.Random(run.seed).sample(range(len(held_out)), min(limit, len(held_out)))
    rows = [held_out[place] for place in sorted(chosen)]
    if not rows:
        run.say("its data is too small to hold any row out, so nothing was judged")
        return
    model = task.load_model(str(run.result)).to(device()).eval()
    read = Rows(kept=rows)
    said = task.predict(model, load_tokenizer(str(run.result)), read, max_length)
    mine, theirs = task.figures(rows, said), task.figures(rows, task.guess(training, rows))
    grouped = any("group" in row for row in rows)
    groups = [str(row.get("group", f"row {number}")) for number, row in enumerate(rows)] if grouped else None
    figures = {
        name: {
            "value": asdict(one.estimate(groups=groups)), "rival": asdict(theirs[name].estimate(groups=groups)),
            "gain": asdict(one.estimate(theirs[name], groups)),
        }
        for name, one in mine.items()
    }  # fmt: skip
    confusion = task.confusion(rows, said)
    run.record["evaluation"] = {
        "rows": len(rows), "groups": len(set(groups)) if groups else None, "primary": task.primary, "rival": task.rival,
        "figures": figures, "dropped": dict(found.dropped), "left_out": dict(+read.left_out),
    }  # fmt: skip
    _write(run.result, rows, said, confusion)
    for line in _rendered(run.record["evaluation"], confusion):
        run.say(line)


def summary(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the figures of a fine-tuned stage in the form that the evaluation gives those of a chain; None where it has none."""
    found = record.get("evaluation")
    if not found:
        return None
    stage, figures = str(record["stage"]), found["figures"]
    return {
        "measured": {stage: record["outputs"]},
        "stages": {
            stage: {name: one["value"] for name, one in figures.items()},
            "baseline": {name: one["rival"] for name, one in figures.items()},
        },
        "comparisons": [
            {"stage": stage, "against": "baseline", "metric": name, **one["gain"], "better": one["gain"]["low"] > 0}
            for name, one in sorted(figures.items(), key=lambda item: item[0] != found["primary"])
        ],
        "samples": [], "left_out": dict(Counter(found["dropped"]) + Counter(found.get("left_out", {}))),
    }  # fmt: skip


def _write(folder: Path, rows: Sequence[Row], said: Sequence[Prediction], confusion: dict[str, dict[str, int]]) -> None:
    with (folder / PREDICTIONS).open("w", encoding="utf-8") as file:
        for row, line in zip(rows, said, strict=True):
            file.write(json.dumps({"row": row, "said": line}, ensure_ascii=False) + "\n")
    if confusion:
        with (folder / CONFUSION).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["true \\ said", *confusion])
            table.writerows([name, *line.values()] for name, line in confusion.items())


def _rendered(found: dict[str, Any], confusion: dict[str, dict[str, int]]) -> list[str]:
    """Return the figures in words, and a small confusion matrix."""
    of = f"{found['rows']:,} held-out rows" + (f" of {found['groups']} groups" if found["groups"] else "")
    lines = [f"on {of}, beside {found['rival']}:"]
    for name, one in found["figures"].items():
        gain = one["gain"]
        verdict = "better, clear of zero" if gain["low"] > 0 else "not clearly better"
        lines.append(f"  {name:<12} {figure(name, one['value']):<24} {figure(name, one['rival']):<24} "
                     f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]  {verdict}")  # fmt: skip
    lines += [f"  not read: {count:,} {reason}" for reason, count in found["left_out"].items()]
    if 0 < len(confusion) <= _SHOWN:
        width = max(map(len, confusion)) + 2
        lines.append("true \\ said".ljust(max(width, 13)) + "".join(name.rjust(width) for name in confusion))
        lines += [
            name.ljust(max(width, 13)) + "".join(str(count).rjust(width) for count in line.values())
            for name, line in confusion.items()
        ]
    return lines

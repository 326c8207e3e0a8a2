"""Evaluates fine-tuned models: on held-out rows, against a trivial baseline and against controls.

The stage that fine-tunes predicts the held-out rows when it is done and writes down every prediction; whoever evaluates
the node again reads them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain.run import Run
from pipeline.data import types
from pipeline.data.rows import Rows
from pipeline.data.types import Row
from pipeline.evaluation import table
from pipeline.evaluation.comparisons import block, collected
from pipeline.evaluation.metrics import Evaluator, Measurement
from pipeline.evaluation.subject import Subject, about
from pipeline.system.errors import UserError
from pipeline.tasks import Prediction, Task
from pipeline.tasks import _predictions as predictions
from pipeline.tasks._predictions import Predictions

_RESAMPLES = 1000
_SAVING = ("save_strategy", "save_steps")
_PARENT = "parent as it was"
_SHOWN = 8  # labels of a confusion matrix that is printed, and of those that training never saw
_NAMED = 3  # rows of such a label


class TaskEvaluator(Evaluator):
    """Measures a task on the rows that its stage held out, from the predictions in the folders of node and controls."""

    def __init__(self, task: Task) -> None:
        self.task, self.metrics = task, task.metrics
        self.reads, self.gives = task.reads, (task.family,)

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield the task's metrics of the node, of its controls and of the baseline."""
        own = subject.record.get("evaluation") or {}
        subject.skipped.update(own.get("skipped", {}))
        found = predictions.read(Path(subject.node.where))
        rows = found.rows
        if not rows:
            return
        groups = groups_of(rows)
        subject.describe(rows, types.load(self.task.reads).items, len(set(groups or ())))
        yield from self.measured(subject.node.label, rows, found.said, groups)
        for control in subject.controls:
            theirs = predictions.read(Path(control.where))
            if theirs.rows == rows:
                yield from self.measured(control.label, rows, theirs.said, groups)
            else:
                subject.skipped[f"figures of {control.label}: it was evaluated on other rows"] += 1
        yield from self.without_a_model(found)

    def without_a_model(self, found: Predictions) -> Iterator[Measurement]:
        """Yield the task's metrics of the baseline and of the rivals."""
        groups = groups_of(found.rows)
        for name, said in {self.task.baseline_name: found.baseline, **found.rivals}.items():
            yield from self.measured(name, found.rows, said, groups)

    def measured(
        self, label: str, rows: Sequence[Row], predicted: Sequence[Prediction], groups: Sequence[str] | None
    ) -> Iterator[Measurement]:
        """Yield the task's metrics of one model's predictions."""
        for name, figure in self.task.figures(rows, predicted).items():
            yield Measurement(label, name, figure, groups)


def evaluators(options: Any) -> list[Evaluator]:
    """Return what evaluates a model that is fine-tuned with these options (of a stage, with the task under `chosen`)."""
    return [TaskEvaluator(options.chosen)]


EVALUATORS = evaluators


def groups_of(rows: Sequence[Row]) -> list[str] | None:
    """Return the group of each row, a row without one being a group of its own; None where no row has a group."""
    if not any("group" in row for row in rows):
        return None
    return [str(row.get("group", f"row {number}")) for number, row in enumerate(rows)]


def stopping(task: Task, patience: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Trainer's arguments that keep the epoch with the best figure; UserError where others are given."""
    if not patience:
        return {}
    if faults := [
        f"{key}: with patience a checkpoint is saved after each epoch; leave it out" for key in _SAVING if key in given
    ]:
        raise UserError(*faults)
    return {
        "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "greater_is_better": True,
        "metric_for_best_model": task.primary, "restore_callback_states_from_checkpoint": True,
    }  # fmt: skip


def values(task: Task, model: Any, tokenizer: Any, rows: Sequence[Row], max_length: int) -> dict[str, float]:
    """Return the figures of a model on rows, without intervals, under what the task tunes on them.

    The model is in training mode afterwards.
    """
    predicted = task.predict(model, tokenizer, Rows(kept=list(rows)), max_length)
    found = task.figures(rows, task.tune(model, rows, predicted))
    model.train()
    return {name: float(one.of(one.items.sum(0))) for name, one in found.items()}


def finish(
    run: Run, task: Task, training: Sequence[Row], found: Rows, max_length: int, limit: int,
    beside: Callable[[Sequence[Row]], dict[str, list[Prediction]]] = lambda rows: {},
) -> None:  # fmt: skip
    """Evaluate the model that a stage hands on, loaded as anybody would load it, on rows that were held out.

    Writes every prediction beside the model, puts the figures in the record, and prints them. `beside`: what others that
    it is compared with say of the rows, by name.
    """
    numbers = sorted(random.Random(run.seed).sample(range(len(found.kept)), min(limit, len(found.kept))))
    rows = [found.kept[number] for number in numbers]
    if not rows:
        run.say("its data is too small to hold any row out, so nothing was evaluated")
        return
    read = Rows(kept=rows)
    predicted = task.predictor(str(run.result), max_length)(read)
    rivals, skipped = _rivals(run, task, training, rows, max_length)
    told = types.load(task.reads).told
    held_out = Predictions([told(row) for row in rows], predicted, task.baseline(training, rows), beside(rows) | rivals)
    confusion = task.confusion(rows, predicted)
    predictions.write(run.result, held_out, confusion, task.by_label(rows, predicted))
    skipped |= dict(found.dropped + read.truncated)
    evaluation = run.record["evaluation"] = _block(run, task, held_out) | {"skipped": skipped}
    if unseen := _unseen(task, training, found, numbers):
        evaluation["unseen_labels"] = {label: len(origins) for label, origins in unseen.items()}
        run.say(_named(unseen))
    for line in [*table.of_node(run.name, evaluation), *_matrix(confusion)]:
        run.say(line)


def said(task: Task, folder: str, rows: Sequence[Row], max_length: int) -> list[Prediction]:
    """Return the predictions of a fine-tuned model: those that lie beside it, where they are of these rows."""
    kept, told = predictions.read(Path(folder)), types.load(task.reads).told
    return (
        list(kept.said)
        if kept.rows == [told(row) for row in rows]
        else task.predictor(folder, max_length)(Rows(kept=list(rows)))
    )


def _unseen(task: Task, training: Sequence[Row], found: Rows, numbers: Sequence[int]) -> dict[str, list[str]]:
    """Return label → where the held-out rows stand that have it, of labels that no training row has."""
    known = {label for row in training for label in task.labels_of(row)}
    unseen: dict[str, list[str]] = {}
    for number in numbers:
        for label in sorted(set(task.labels_of(found.kept[number])) - known):
            unseen.setdefault(label, []).append(found.origin(number))
    return unseen


def _named(unseen: Mapping[str, Sequence[str]]) -> str:
    """Return in words which held-out rows have labels that training never saw."""
    shown = [
        f"{label!r} at {', '.join(origins[:_NAMED])}{f' and {len(origins) - _NAMED:,} more' if len(origins) > _NAMED else ''}"
        for label, origins in list(unseen.items())[:_SHOWN]
    ]
    more = f"; and {len(unseen) - _SHOWN:,} more labels" if len(unseen) > _SHOWN else ""
    return f"labels of held-out rows that no training row has, so that the model can't say them: {'; '.join(shown)}{more}"


def _rivals(
    run: Run, task: Task, training: Sequence[Row], rows: Sequence[Row], max_length: int
) -> tuple[dict[str, list[Prediction]], dict[str, int]]:
    """Return the predictions of the task's rivals by name, and why there are none; a control is held against nothing."""
    if run.record["control_of"]:
        return {}, {}
    found = {_PARENT: task.predictor(run.parent, max_length)(Rows(kept=rows))} if task.parent_too else {}
    try:
        return found | dict(task.rivals(training, rows)), {}
    except ModuleNotFoundError as error:
        return found, {f"figures of its rivals: {error.name} is not installed; `make setup-data` installs it": 1}


def _block(run: Run, task: Task, found: Predictions) -> dict[str, Any]:
    """Return the figures in the form that the evaluation gives those of a node."""
    evaluator, rows, groups = TaskEvaluator(task), found.rows, groups_of(found.rows)
    measured = [*evaluator.measured(run.name, rows, found.said, groups), *evaluator.without_a_model(found)]
    parents = {
        Path(place).name: {"role": role, "asked": ""} for role, place in run.parents.items() if Path(place).name in found.rivals
    }
    of = about(len(rows), types.load(task.reads).items, run.recipe.name, len(set(groups or ())))
    return {
        "stage": run.stage.kind, "title": run.stage.title,
        "of": of, "rows": len(rows),
        **block(run.name, {run.name: {"role": "node", "asked": ""}, **parents}, collected(measured), task.metrics,
                run.stage.judged_by(run.options), _RESAMPLES),
    }  # fmt: skip


def _matrix(confusion: dict[str, dict[str, int]]) -> list[str]:
    """Return a small confusion matrix as lines of text; nothing where there are too many labels to read it."""
    if not 0 < len(confusion) <= _SHOWN:
        return []
    width = max(map(len, confusion)) + 2
    lines = ["true \\ said".ljust(max(width, 13)) + "".join(name.rjust(width) for name in confusion)]
    return lines + [
        name.ljust(max(width, 13)) + "".join(str(count).rjust(width) for count in line.values())
        for name, line in confusion.items()
    ]

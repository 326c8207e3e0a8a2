"""What stages share that hand on a model of a supervised task: its options, and what asks such a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import tasks
from pipeline.chain.stage import Against, Predictor, Stage
from pipeline.system.config import library_class, option
from pipeline.tasks import Task


@dataclass(frozen=True)
class TaskOptions:
    """Which task, on which rows."""

    task: str = option("", "supervised task, a file in pipeline/tasks")
    task_options: dict[str, Any] = option({}, "its options, such as {balance: weights}")  # noqa: RUF009
    recipe: str = option("", "data recipe that gives the task's rows")
    max_length: int = option(256, "tokens that the model reads at once", at_least=8)
    held_out: int = option(2000, "held-out rows that it is evaluated on, at most", at_least=1)

    @property
    def chosen(self) -> Task:
        """The task with its options."""
        return tasks.load(self.task, self.task_options)


class TaskStage(Stage):
    """A stage whose model is asked by its task."""

    def judged_by(self, options: Any) -> tuple[Against, ...]:
        """Return the task's own metric, against its baseline."""
        return (Against(options.chosen.primary, options.chosen.baseline_name),)

    def longest(self, options: Any) -> int:
        """Return what the task needs of `max_length`."""
        return int(options.chosen.longest(options.max_length))

    def evaluators(self, options: Any) -> Sequence[Any]:
        """Return what reads the predictions that the stage wrote down."""
        return library_class("pipeline.tasks.evaluator.EVALUATORS")(options)  # type: ignore[no-any-return]

    def modules(self, options: Any) -> list[Path]:
        """Return the task's file."""
        return [Path(str(sys.modules[type(options.chosen).__module__].__file__))]

    def load_model(self, options: Any, folder: str) -> Any:
        """Return the model with the task's head."""
        return options.chosen.load_model(folder)

    def predictor(self, options: Any, folder: str) -> Predictor:
        """Return the task's own predictions."""
        task: Task = options.chosen
        average = task.average if options.task in tasks.averaging() else None
        load = partial(task.predictor, folder, options.max_length)
        return Predictor(task.reads, load, average, partial(task.threshold_of, folder))

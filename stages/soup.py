"""Several models of one task in, one whose weights are the mean of theirs out: a model soup (Wortsman et al. 2022).

    python stages/soup.py --config stages/profiles/mine/soup.yaml --parent runs/mine/finetune-a \
--second runs/mine/finetune-b --output runs/mine/soup

Measured on held-out rows beside each of its parents and beside their ensemble, the mean of what they say of each row.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline import tasks
from pipeline.chain import manifest
from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Signature
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.tasks import Prediction
from pipeline.training.task_stage import TaskOptions, TaskStage

ENSEMBLE = "mean of what they say"
_MORE = ("second", "third", "fourth", "fifth")
_FAMILIES = ("classifier", "reader", "tagger", "seq2seq", "embedder", "image_classifier")


class Soup(TaskStage):
    """Average the weights of models that were fine-tuned alike."""

    title = "Model soup"
    about = "A model of one supervised task whose weights are the mean of those of several."
    takes: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys((PARENT, *_MORE), _FAMILIES)
    optional = _MORE[1:]

    @dataclass(frozen=True)
    class Options(TaskOptions):
        """Our own options of the soup."""

        seed: int = option(42, "by which held-out rows are drawn, as of the parents")

    def signature(self, options: Options) -> Signature:
        """Return that all parents are models of the task."""
        task = options.chosen
        return Signature(task.reads, dict.fromkeys(self.takes, (task.family,)), task.family, optional=self.optional)

    def judged_by(self, options: Options) -> tuple[Against, ...]:
        """Return the task's own metric, against the first parent."""
        return (Against(options.chosen.primary, PARENT),)

    def train(self, run: Run) -> None:
        """Average the weights, then predict every held-out row with the model as anybody would load it."""
        from pipeline.models import averaging
        from pipeline.tasks import evaluator

        options: Soup.Options = run.options
        task, folders = options.chosen, list(run.parents.values())
        run.unchanged()
        if not run.main:
            return
        model = averaging.averaged([task.load_model(folder) for folder in folders], folders, task.tunes)
        task.save(model, task.processor(run.parent), run.result)
        run.say(f"the mean of {len(folders)} models of {model.num_parameters():,} parameters")

        def beside(rows: Sequence[Row]) -> dict[str, list[Prediction]]:
            said = {Path(folder).name: evaluator.said(task, folder, rows, options.max_length) for folder in folders}
            if options.task not in tasks.averaging():
                return said
            return said | {ENSEMBLE: task.average(list(said.values()), [task.threshold_of(folder) for folder in folders])}

        training = run.rows()
        run.record["recipe"] |= {"rows": len(training.kept), "kept": len(training.kept), "dropped": {}}
        evaluator.finish(run, task, training.kept, _held_out(run), options.max_length, options.held_out, beside)


def _held_out(run: Run) -> Rows:
    """Return the rows that every parent held out, since seeds may split a recipe's rows differently, and never looked at.

    Raises UserError where a parent was trained on other data, or its files of validation are not there as they were.
    """
    from pipeline.data import recipe as recipes
    from pipeline.system import hashes
    from pipeline.training import validation

    reads, found = run.signature.reads, run.rows("held_out")
    for folder in run.parents.values():
        record = manifest.read(Path(folder)) if Path(folder).is_dir() else None
        if not record:
            continue
        if record["recipe"].get("digest") != run.record["recipe"]["digest"]:
            raise UserError(f"{folder}: was trained on other data, so it is not known which of these rows it held out")
        validation.unseen(run, found, folder, record)
        if record["seed"] == run.seed:
            continue
        theirs = {hashes.digest(row) for row in recipes.of(record).rows(reads, "held_out", record["seed"]).kept}
        left = [number for number, row in enumerate(found.kept) if hashes.digest(row) in theirs]
        if len(left) < len(found.kept):
            found.dropped["held out here and trained on by a parent"] += len(found.kept) - len(left)
            found.keep(left, folder)
    return found


STAGE = Soup

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

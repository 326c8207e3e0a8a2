"""A model that lays pictures beside texts in, the same one with classes out, which it tells by prompts: nothing is trained.

    python stages/zero_shot.py --config stages/profiles/emoji/zero_shot.yaml --parent runs/emoji/pretrain-clip \
--output runs/emoji/zero_shot

Evaluated on held-out pictures with a label against the most frequent label, with every prediction written down.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Signature
from pipeline.system.config import option, refuse_unread
from pipeline.training.task_stage import TaskOptions, TaskStage


class ZeroShot(TaskStage):
    """Ask the parent as it is, by the prompts of the task."""

    title = "Zero-shot classification"
    about = "A model that tells classes of pictures by prompts; it was trained on pictures and texts, and on no label."
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("dual_encoder",)}

    @dataclass(frozen=True)
    class Options(TaskOptions):
        """Our own options of zero-shot classification."""

        task: str = option("zero_shot", "supervised task, a file in pipeline/tasks, that needs no training")
        seed: int = option(42, "by which held-out rows are drawn, as of the parent")
        init: Literal["parent", "random"] = option("parent", "parent, or random weights of the same sizes, for a control")

    def signature(self, options: Options) -> Signature:
        """Return what the task reads; the model stays of its family."""
        task = options.chosen
        refuse_unread(options, task.unread, f"the task {options.task}")
        return Signature(task.reads, self.takes, task.family)

    def train(self, run: Run) -> None:
        """Hand on the parent with the classes, then predict every held-out row with the model as anybody would load it."""
        from transformers import set_seed

        from pipeline.tasks import evaluator

        options: ZeroShot.Options = run.options
        task, rows = options.chosen, run.rows()
        run.unchanged()
        if not run.main:
            return
        set_seed(run.seed)
        model = task.load_model(run.parent, task.labels(rows.kept), options.init == "random")
        task.save(model, task.processor(run.parent), run.result)
        run.record["recipe"] |= {"rows": len(rows.kept), "kept": len(rows.kept), "dropped": {}}
        run.say(f"{model.num_parameters():,} parameters, of which none is trained")
        evaluator.finish(run, task, rows.kept, run.rows("held_out"), options.max_length, options.held_out)


STAGE = ZeroShot

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

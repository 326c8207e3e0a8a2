"""A pretrained model and labelled rows in, a model that does the task out: supervised fine-tuning of every family.

    python stages/finetune.py --config stages/profiles/minilm/finetune-genres.yaml --parent runs/minilm/pretrain \
--output runs/minilm/finetune-genres

Judged on held-out rows against a trivial baseline, with every prediction written down. With `init: random` it
is the control: the same rows and steps from random weights.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from pipeline import tasks
from pipeline.system.config import option
from pipeline.chain.stage import Edges, Run, Stage, run_stage
from pipeline.training.strategies import Strategy
from pipeline.tasks import Task


@dataclass(frozen=True)
class Options:
    """Our own options of fine-tuning."""

    task: str = option("", "supervised task, a file in pipeline/tasks")
    task_options: dict[str, Any] = option({}, "its options, such as {balance: weights}")  # noqa: RUF009
    recipe: str = option("", "data recipe that gives the task's rows")
    strategy: Strategy = option("full", "what is trained: full, frozen (head), last_n (last layers), lora, prompt")  # noqa: RUF009
    last_layers: int = option(2, "layers that last_n trains", at_least=1)
    lora_rank: int = option(16, "rank of the adapter", at_least=1)
    lora_alpha: int = option(32, "scale of the adapter times its rank", at_least=1)
    prompt_tokens: int = option(20, "soft tokens that prompt puts before every text", at_least=1)
    init: Literal["parent", "random"] = option("parent", "parent, or random for the control")
    max_length: int = option(256, "tokens that the model reads at once", at_least=8)
    patience: int = option(
        0, "epochs without a better figure before it stops and keeps the best; 0 trains to the end", at_least=0
    )
    validation: float = option(0.1, "share of the training rows that patience looks at", at_least=0.001, at_most=0.5)
    held_out: int = option(2000, "held-out rows that it is judged on, at most", at_least=1)

    @property
    def chosen(self) -> Task:
        """The task with its options."""
        return tasks.load(self.task, self.task_options)


def edges(options: Options) -> Edges:
    """Return what the task reads, takes and hands on."""
    task = options.chosen
    return Edges(task.shape, task.family, task.accepts)


STAGE = Stage(
    name="finetune", edges=edges, options=Options, arguments="transformers.TrainingArguments", defaults={"learning_rate": 5e-5},
)  # fmt: skip


def train(run: Run) -> None:
    """Put a head on the parent where the task needs one, train what the strategy says, judge what came of it."""
    from transformers import EarlyStoppingCallback, set_seed

    from pipeline.models import tokenizer
    from pipeline.training.loop import guards, strategies
    from pipeline.data import tokens
    from pipeline.evaluation import task as judge
    from pipeline.training.trainer import TaskTrainer
    from pipeline.training.loop import DEFAULTS, FORCED, decay, fit, hand_over, prepare

    options: Options = run.options
    task = options.chosen
    arguments = run.library_arguments(
        **DEFAULTS | run.arguments | FORCED | judge.stopping(task, options.patience, run.arguments)
    )
    rows = run.recipe.rows(task.shape, "train", run.seed)
    labels = task.labels(rows.kept)
    held_back = rows.hold_back(options.validation, run.seed) if options.patience else []
    set_seed(run.seed)
    vocabulary = tokenizer.load(run.parent)
    model = task.load_model(run.parent, labels, options.init == "random")
    prompt: list[int] = []
    if options.strategy == "prompt":
        vocabulary, prompt = strategies.add_prompt(vocabulary, model, options.prompt_tokens)
    guards.fits_parent(model, vocabulary, task.longest(options.max_length))
    guards.agree(vocabulary, model)
    dataset = prepare(run, rows, task.examples(rows, vocabulary, options.max_length, list(model.config.id2label.values())))
    guards.learns(dataset, rows.dropped + rows.late)
    run.record["recipe"]["validation"] = len(held_back)
    collator = task.collator(vocabulary, dataset)
    sample = {
        key: ids
        for key, ids in dataset[0].items()
        if key in ("input_ids", "token_type_ids") or (task.family == "seq2seq" and key == "labels")
    }
    dataset = tokens.numbered(task.arrange(dataset, run.seed))
    model = strategies.chosen(options.strategy, model, options.last_layers, options.lora_rank, options.lora_alpha, prompt)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    run.say(f"trains {trained:,} of {model.num_parameters():,} parameters ({options.strategy}) on {len(dataset):,} examples")
    trainer = TaskTrainer(
        task, model, arguments, collator, dataset, held_back or None, processing_class=vocabulary,
        callbacks=[EarlyStoppingCallback(options.patience)] if options.patience else None,
    )  # fmt: skip
    trainer.validate = lambda model: judge.values(task, model, vocabulary, held_back[: options.held_out], options.max_length)
    decay(arguments, len(dataset))
    fit(run, trainer, rows)
    hand_over(run, trainer, vocabulary, sample, task.save)
    if run.main:
        judge.judged(run, task, rows.kept, options.max_length, options.held_out)


if __name__ == "__main__":
    sys.exit(run_stage(STAGE, train, str(__doc__)))

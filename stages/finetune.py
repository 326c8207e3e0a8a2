"""A pretrained model and labelled rows in, a model that does the task out: supervised fine-tuning of every family.

    python stages/finetune.py --config stages/profiles/minilm/finetune-genres.yaml --parent runs/minilm/adopt \
--output runs/minilm/finetune-genres

Evaluated on held-out rows against a trivial baseline, with every prediction written down.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline import tasks
from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Predictor, Signature, Stage
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.system.config import library_class, option
from pipeline.system.errors import UserError
from pipeline.tasks import Task
from pipeline.training.strategies import Strategy


class Finetuning(Stage):
    """Put a head on the parent where the task needs one, train what the strategy says, evaluate the result."""

    title = "Fine-tuning"
    about = "A model of one supervised task, fine-tuned on labelled rows."
    library = "transformers.TrainingArguments"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 5e-5}

    @dataclass(frozen=True)
    class Options:
        """Our own options of fine-tuning."""

        task: str = option("", "supervised task, a file in pipeline/tasks")
        task_options: dict[str, Any] = option({}, "its options, such as {balance: weights}")  # noqa: RUF009
        recipe: str = option("", "data recipe that gives the task's rows")
        strategy: Strategy = option("full", "what is trained: full, frozen (head), last_n (last layers), lora, prompt")  # noqa: RUF009
        last_layers: int = option(2, "layers that last_n trains", at_least=1, needs=("strategy", "last_n"))
        r: int = option(16, "rank of the adapter", at_least=1, needs=("strategy", "lora"))
        lora_alpha: int = option(32, "scale of the adapter times its rank", at_least=1, needs=("strategy", "lora"))
        prompt_tokens: int = option(
            20, "soft tokens that prompt puts before every text", at_least=1, needs=("strategy", "prompt")
        )
        init: Literal["parent", "random"] = option("parent", "parent, or random weights of the same sizes, for a control")
        max_length: int = option(256, "tokens that the model reads at once", at_least=8)
        patience: int = option(
            0, "epochs without a better figure before it stops and keeps the best; 0 trains to the end", at_least=0
        )
        validation: float = option(
            0.1, "share of the training rows that patience looks at", at_least=0.001, at_most=0.5, unless=("patience", 0)
        )
        held_out: int = option(2000, "held-out rows that it is evaluated on, at most", at_least=1)

        @property
        def chosen(self) -> Task:
            """The task with its options."""
            return tasks.load(self.task, self.task_options)

    def signature(self, options: Options) -> Signature:
        """Return what the task reads, takes and gives."""
        task = options.chosen
        if options.strategy == "prompt" and options.prompt_tokens > options.max_length - 8:
            raise UserError(
                f"prompt_tokens: {options.prompt_tokens} leave fewer than 8 of max_length, {options.max_length}, for the text itself"
            )
        return Signature(task.reads, {PARENT: task.accepts}, task.family)

    def families(self) -> tuple[str, ...]:
        """Return what any task takes."""
        return tuple({family: None for name in tasks.known() for family in tasks.declared(name).accepts})

    def judged_by(self, options: Options) -> tuple[Against, ...]:
        """Return the task's own metric, against its baseline."""
        return (Against(options.chosen.primary, options.chosen.baseline_name),)

    def evaluators(self, options: Options) -> Sequence[Any]:
        """Return what reads the predictions that the stage wrote down."""
        return library_class("pipeline.tasks.evaluator.EVALUATORS")(options)  # type: ignore[no-any-return]

    def modules(self, options: Options) -> list[Path]:
        """Return the task's file."""
        return [Path(str(sys.modules[type(options.chosen).__module__].__file__))]

    def load_model(self, options: Options, folder: str) -> Any:
        """Return the model with the task's head."""
        return options.chosen.load_model(folder)

    def predictor(self, options: Options, folder: str) -> Predictor:
        """Return the task's own predictions."""
        task = options.chosen
        return Predictor(task.reads, lambda: task.predictor(folder, options.max_length))

    def rows(self, run: Run) -> Rows:
        """Return the recipe's rows, those left out that patience looks at."""
        rows = run.rows()
        if run.options.patience:
            rows.hold_back(run.options.validation, run.seed, run.options.chosen.reads)
        return rows

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return the task's examples, in the order and number of one epoch."""
        from pipeline.data import tokens
        from pipeline.training import guards
        from pipeline.training.loop import prepare

        options: Finetuning.Options = run.options
        task = options.chosen
        dataset = prepare(run, rows, task.examples(rows, tokenizer, options.max_length, list(model.config.id2label.values())))
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        if said := guards.framed(dataset, tokenizer, task.family == "seq2seq"):
            run.say(said)
        collator = task.collator(tokenizer, dataset)
        read = ("input_ids", "token_type_ids", *(["labels"] if task.family == "seq2seq" else []))
        sample = {key: ids for key, ids in dataset[0].items() if key in read}
        return Batches(tokens.numbered(task.arrange(dataset, run.seed)), collator, sample)

    def train(self, run: Run) -> None:
        """Train, then predict every held-out row with the model as anybody would load it."""
        from transformers import EarlyStoppingCallback, set_seed

        from pipeline.models import tokenization
        from pipeline.models.prompt import add_prompt
        from pipeline.tasks import evaluator
        from pipeline.training import guards, strategies
        from pipeline.training.loop import DEFAULTS, FORCED, decay, fit, hand_over
        from pipeline.training.trainer import TaskTrainer

        options: Finetuning.Options = run.options
        task = options.chosen
        arguments = run.library_arguments(
            **DEFAULTS | run.arguments | FORCED | evaluator.stopping(task, options.patience, run.arguments)
        )
        rows = self.rows(run)
        labels = task.labels(chain(rows.kept, rows.validation))
        set_seed(run.seed)
        tokenizer = tokenization.load(run.parent)
        model = task.load_model(run.parent, labels, options.init == "random", rows.kept)
        prompt: list[int] = []
        if options.strategy == "prompt":
            tokenizer, prompt = add_prompt(tokenizer, model, options.prompt_tokens)
        guards.fits_parent(model, tokenizer, task.longest(options.max_length))
        guards.agree(tokenizer, model)
        guards.batches(task, arguments)
        made = self.batches(run, rows, tokenizer, model)
        run.record["recipe"]["validation"] = len(rows.validation)
        model = strategies.chosen(options.strategy, model, options.last_layers, options.r, options.lora_alpha, prompt)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        run.say(
            f"trains {trained:,} of {model.num_parameters():,} parameters ({options.strategy}) on {len(made.dataset):,} examples"
        )
        trainer = TaskTrainer(
            task, model, arguments, made.collator, made.dataset, rows.validation or None, processing_class=tokenizer,
            callbacks=[EarlyStoppingCallback(options.patience)] if options.patience else None,
        )  # fmt: skip
        seen = rows.validation[: options.held_out]
        trainer.validate = lambda model: evaluator.values(task, model, tokenizer, seen, options.max_length)
        decay(arguments, len(made.dataset))
        fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, made.sample, task.save)
        if run.main:
            evaluator.finish(run, task, rows.kept, options.max_length, options.held_out)


STAGE = Finetuning

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

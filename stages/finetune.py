"""A pretrained model and labelled rows in, a model that does the task out: supervised fine-tuning of every family.

    python stages/finetune.py --config stages/profiles/minilm/finetune-genres.yaml --parent runs/minilm/adopt \
--output runs/minilm/finetune-genres

Evaluated on held-out rows against a trivial baseline, with every prediction written down.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline import augmentation, tasks
from pipeline.augmentation import Augmentation
from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Signature
from pipeline.data import types
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.data.source_recipe import Source
from pipeline.system import hashes
from pipeline.system.config import option, refuse_unread
from pipeline.system.errors import UserError
from pipeline.training.strategies import Strategy
from pipeline.training.task_stage import TaskOptions, TaskStage


class Finetuning(TaskStage):
    """Put a head on the parent where the task needs one, train what the strategy says, evaluate the result."""

    title = "Fine-tuning"
    about = "A model of one supervised task, fine-tuned on labelled rows."
    library = "transformers.TrainingArguments"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 5e-5}
    takes: ClassVar[dict[str, tuple[str, ...]]] = {
        PARENT: ("causal",),
        **augmentation.roles(),
    }  # the parent's: as the task says

    @dataclass(frozen=True)
    class Options(TaskOptions):
        """Our own options of fine-tuning."""

        strategy: Strategy = option("full", "what is trained: full, frozen (head), last_n (last layers), lora, prompt")  # noqa: RUF009
        last_layers: int = option(2, "layers that last_n trains", at_least=1, needs=("strategy", "last_n"))
        r: int = option(16, "rank of the adapter", at_least=1, needs=("strategy", "lora"))
        lora_alpha: int = option(32, "scale of the adapter times its rank", at_least=1, needs=("strategy", "lora"))
        prompt_tokens: int = option(
            20, "soft tokens that prompt puts before every text", at_least=1, needs=("strategy", "prompt")
        )
        init: Literal["parent", "random"] = option("parent", "parent, or random weights of the same sizes, for a control")
        patience: int = option(
            0, "epochs without a better figure before it stops and keeps the best; 0 trains to the end", at_least=0
        )
        validation: float = option(
            0.1, "share of the training rows that patience and what is tuned look at", at_least=0.001, at_most=0.5
        )
        validation_data: str = option(
            "", "file, folder or glob of rows that they look at instead of that share", by_content=True, omitted=True
        )
        augmentation: str = option("", "how training rows are varied, a file in pipeline/augmentation", omitted=True)
        augmentation_options: dict[str, Any] = option({}, "its options, such as {share: 0.2}", omitted=True)  # noqa: RUF009

        @property
        def varied(self) -> Augmentation | None:
            """The augmentation with its options, if there is one."""
            if not self.augmentation and self.augmentation_options:
                raise UserError("augmentation_options: are read only with an augmentation; name one, or leave them out")
            return augmentation.load(self.augmentation, self.augmentation_options) if self.augmentation else None

        @property
        def validates(self) -> bool:
            """Whether rows are looked at that the model does not train on."""
            return bool(self.patience) or self.chosen.tuned

    def signature(self, options: Options) -> Signature:
        """Return what the task reads, takes and gives."""
        task = options.chosen
        refuse_unread(options, task.unread, f"the task {options.task}")
        if options.strategy == "prompt" and task.keeps == "pixels":
            raise UserError(
                "strategy: prompt puts soft tokens before a text, and this task reads pictures; try frozen, last_n or lora"
            )
        for key in ("validation", "validation_data"):
            if getattr(options, key) != getattr(self.Options, key) and not options.validates:
                raise UserError(f"{key}: is not read without patience, or a task that is tuned; leave it out")
        if options.strategy == "prompt" and options.prompt_tokens > options.max_length - 8:
            raise UserError(
                f"prompt_tokens: {options.prompt_tokens} leave fewer than 8 of max_length, {options.max_length}, for the text itself"
            )
        if not (varied := options.varied):
            return Signature(task.reads, {PARENT: task.accepts}, task.family)
        from pipeline.training import augmented

        augmented.fits(varied, task, options.augmentation)
        return Signature(task.reads, {PARENT: task.accepts, **varied.takes}, task.family, optional=varied.optional)

    def families(self) -> tuple[str, ...]:
        """Return what any task takes."""
        return tuple({family: None for name in tasks.known() for family in tasks.declared(name).accepts})

    def sources(self, options: Options) -> list[Path]:
        """Return the files of validation."""
        if not options.validation_data:
            return []
        source = Source.of(options.validation_data, options.chosen.reads)
        return [*source.files, *source.beside]

    def digests(self, options: Options) -> dict[str, str]:
        """Return that of the files of validation, where their names say what they hold, as a folder says the label of a picture."""
        reads = options.chosen.reads
        if not options.validation_data or not types.load(reads).beside:
            return {}
        return {"validation_data": hashes.streamed(Source.of(options.validation_data, reads).identity())}

    def modules(self, options: Options) -> list[Path]:
        """Return the files of the task and of the augmentation."""
        varied = [Path(str(sys.modules[type(options.varied).__module__].__file__))] if options.varied else []
        return [*super().modules(options), *varied]

    def rows(self, run: Run) -> Rows:
        """Return the recipe's rows, those left out that are looked at while it trains."""
        options: Finetuning.Options = run.options
        from pipeline.training import validation

        rows = validation.training(run, options.validation, options.validation_data) if options.validates else run.rows()
        if options.chosen.labelled < 1:
            validation.label_few(rows, options.chosen.labelled, run.seed, options.chosen.labels_of)
        return rows

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return the task's examples, in the order and number of one epoch."""
        from pipeline.data import token_tables
        from pipeline.training import augmented, guards
        from pipeline.training.loop import prepare

        options: Finetuning.Options = run.options
        task = options.chosen
        labels = list(model.config.id2label.values())

        def encode(part: Rows) -> Iterator[tasks.Example]:
            return task.examples(part, tokenizer, options.max_length, labels)

        varied = options.varied
        if varied:
            dataset = prepare(run, rows, augmented.examples(varied, run, rows, run.rows("held_out"), encode))
        else:
            dataset = prepare(run, rows, encode, tokenizer, options.task, options.task_options, options.max_length, labels)
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        if said := guards.framed(dataset, tokenizer, task.family == "seq2seq"):
            run.say(said)
        collator = task.collator(tokenizer, dataset)
        if varied:
            collator = augmented.collator(varied, run, collator, tokenizer)
        sample = task.sample(dataset, tokenizer)
        dataset = task.arrange(dataset, run.seed)
        return Batches(token_tables.numbered(dataset) if varied else dataset, collator, sample)

    def train(self, run: Run) -> None:
        """Train, then predict every held-out row with the model as anybody would load it."""
        from transformers import EarlyStoppingCallback, set_seed

        from pipeline.models.prompt import add_prompt
        from pipeline.tasks import evaluator
        from pipeline.training import guards, strategies, validation
        from pipeline.training.loop import DEFAULTS, FORCED, decay, fit, hand_over
        from pipeline.training.trainer import TaskTrainer

        options: Finetuning.Options = run.options
        task = options.chosen
        arguments = run.library_arguments(
            **DEFAULTS | run.arguments | FORCED | evaluator.stopping(task, options.patience, run.arguments)
        )
        rows = self.rows(run)
        seen = rows.validation[: options.held_out]
        task.tunable(seen)
        labels = task.labels(chain(rows.kept, rows.validation))
        set_seed(run.seed)
        tokenizer = task.processor(run.parent)
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
        trainer.validate = lambda model: evaluator.values(task, model, tokenizer, seen, options.max_length)
        decay(arguments, len(made.dataset))
        fit(run, trainer, rows)
        if task.tuned:
            reached = trainer.validate(model)[task.primary]
            chosen = run.record["tuned"] = {task.tunes: getattr(model.config, task.tunes)}
            run.say(
                f"{task.tunes} {chosen[task.tunes]:.4g}, by {task.primary} on {len(seen):,} validation rows ({reached:.4f})"
            )
        hand_over(run, trainer, tokenizer, made.sample, task.save)
        if run.main:
            held_out = validation.held_out(run, options.validation_data)
            evaluator.finish(run, task, rows.kept, held_out, options.max_length, options.held_out)


STAGE = Finetuning

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

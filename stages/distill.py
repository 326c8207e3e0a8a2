"""A large model and rows in, a small one that has learned from it out: distillation by soft targets.

    python stages/distill.py --config stages/profiles/distill/distill.yaml --teacher runs/tiny/pretrain --output runs/distill/distill

The student is the parent, or without one a new model with the teacher's tokenizer and its configuration, save for the keys
in `student: {hidden_size: 64, …}`. With `reads: text` or `messages` it learns, at each target of the rows, what the teacher
thinks of every token of the vocabulary (Hinton et al. 2015; every other key is one of transformers.TrainingArguments). With
`reads: prompts` it learns that on answers which it samples itself, without dropout (Agarwal et al. 2024, eq. 3; trl's
DistillationConfig). `beta` chooses the divergence: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Signature, Stage
from pipeline.data.batches import Batches, CausalCollator
from pipeline.data.recipe import Rows
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.training.adapter import AdapterOptions
from pipeline.training.rewarded import UNREAD

TEACHER = "teacher"


class Distillation(Stage):
    """Draw a student's distributions towards those of a frozen teacher."""

    title = "Distillation"
    about = "A smaller model: distilled from a larger one by its distribution over every next token."
    reads = "text"
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("causal",), TEACHER: ("causal",)}
    optional = (PARENT,)
    library = "transformers.TrainingArguments"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 1e-3}
    ignores = UNREAD
    primary = (
        Against("loss", "control"), Against("kl_to_teacher", PARENT), Against("exact_match", PARENT),
        Against("loss", PARENT), Against("loss", "unigram"),
    )  # fmt: skip

    @dataclass(frozen=True)
    class Options(AdapterOptions):
        """What is trained of the student, what it reads, and how it is held to the teacher."""

        method: Literal["lora", "full"] = option("full", "full, or lora to train an adapter of a parent")
        recipe: str = option("world", "data recipe that gives its rows")
        reads: Literal["text", "messages", "prompts"] = option(
            "text", "text, messages (what the assistant says is learned), or prompts (which the student answers itself)"
        )
        student: dict[str, Any] = option({}, "keys of the teacher's configuration that a new student has otherwise")  # noqa: RUF009
        max_length: int = option(
            256, "tokens of a row; longer texts are split, longer conversations and prompts dropped", at_least=8
        )
        soft_weight: float = option(
            1.0, "weight of the teacher's distributions; the tokens of the rows have the rest", at_least=0.0, at_most=1.0
        )
        beta: float = option(
            0.0,
            "0: KL(teacher ‖ student), 1: KL(student ‖ teacher), or between",
            at_least=0.0,
            at_most=1.0,
            unless=("soft_weight", 0),
        )
        temperature: float = option(
            1.0, "by which the logits of both are divided", at_least=0.01, at_most=100.0, unless=("soft_weight", 0)
        )

    def library_of(self, values: Mapping[str, Any]) -> str | None:
        """Return trl's configuration where answers are sampled."""
        return "trl.DistillationConfig" if values.get("reads") == "prompts" else self.library

    def split(self, values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return options and arguments; of a student that samples its answers have a length."""
        more = {"max_completion_length": 256} if values.get("reads") == "prompts" else {}
        return super().split({**more, **values})

    def signature(self, options: Any) -> Signature:
        """Return the rows that are read; UserError where options contradict each other."""
        faults = []
        if options.reads == "prompts" and options.soft_weight != 1:
            faults.append("soft_weight: prompts have no answers but the student's own, so there is nothing beside the teacher")
        if options.lora_dropout and options.reads == "prompts":
            faults.append("lora_dropout: answers are sampled and learned from without dropout; leave it out")
        if faults:
            raise UserError(*faults)
        return Signature(options.reads, self.takes, self.gives, self.makes, self.optional)

    def note(self, options: Any) -> str:
        """Return what the marked tokens are to the student."""
        if options.reads == "prompts":
            return "Only prompts stand here. What is learned from are the student's answers, which are not written down."
        return "At each token that counts, the student learns what the teacher thinks of every token of the vocabulary."

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return texts or conversations, packed where both models keep them apart, or prompts."""
        from pipeline.models import checkpoint

        return self._read(run, rows, tokenizer, model, checkpoint.load(run.parents[TEACHER], TEACHER))

    def _read(self, run: Run, rows: Rows, tokenizer: Any, model: Any, teacher: Any) -> Batches:
        from pipeline.data import packing, shown, tokens
        from pipeline.models import tokenization
        from pipeline.training import attention, distillation, guards, policy
        from pipeline.training.loop import prepare
        from pipeline.training.parents import known

        options, pad_id = run.options, int(tokenizer.pad_token_id)
        if options.reads == "prompts":
            made = policy.prompts(run, rows, tokenizer, model, distillation.AnswerOrder)
            known(run, teacher, made.dataset, tokenizer, TEACHER)
            return made

        def examples(part: Rows) -> Iterator[dict[str, Any]]:
            if options.reads == "text":
                return tokens.text_pieces(part.kept, tokenizer, options.max_length)
            return tokens.pieces(
                part.kept,
                lambda row: shown.conversation(row["messages"], tokenizer),
                options.max_length,
                False,
                part.dropped_by_encoding,
                part.too_long,
            )

        dataset = prepare(run, rows, examples, tokenizer, options.reads, options.max_length)
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        if options.reads == "messages":
            guards.stops(dataset, tokenizer, tokenization.end_token(tokenizer))
        known(run, teacher, dataset, tokenizer, TEACHER)
        sample = {"input_ids": dataset[0]["input_ids"]}
        if attention.keeps_apart(model) and attention.keeps_apart(teacher):
            dataset = packing.pack(dataset, options.max_length, run.say)
        return Batches(dataset, CausalCollator(pad_id), sample)

    def train(self, run: Run) -> None:
        """Train the student, or an adapter of it, on given rows or on its own answers."""
        from transformers import set_seed

        from pipeline.training import distillation, guards, policy
        from pipeline.training.loop import DEFAULTS, FORCED, decay, fit, hand_over
        from pipeline.training.rollouts import no_dropout
        from pipeline.training.trainer import ObjectiveTrainer

        options: Distillation.Options = run.options
        samples = options.reads == "prompts"
        more = {"beta": options.beta, "temperature": options.temperature, "disable_dropout": True} if samples else {}
        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED | more)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, student, teacher = distillation.opened(run, arguments)
        made = self._read(run, rows, tokenizer, student, teacher)
        adapter = options.adapter()
        if samples:
            guards.ends(tokenizer)
            trainer: Any = distillation.AnswersTrainer(
                student, teacher, arguments, rows.kept, train_dataset=made.dataset, processing_class=tokenizer, peft_config=adapter
            )  # fmt: skip
            with no_dropout(trainer.model):
                fit(run, trainer, rows)
            run.record["rollouts"] = dict(policy.totals(run.output))
        else:
            loss = distillation.SoftTargets(
                teacher, len(tokenizer), options.soft_weight, options.beta, options.temperature,
                keeps=distillation.kept(made.dataset, len(tokenizer), arguments),
            )  # fmt: skip
            student = distillation.adapted(student, adapter)
            trainer = ObjectiveTrainer(loss, student, arguments, made.collator, made.dataset, processing_class=tokenizer)
            decay(arguments, len(made.dataset))
            fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, made.sample)


STAGE = Distillation

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

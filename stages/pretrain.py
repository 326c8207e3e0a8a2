"""Raw text in, a base model with its own tokenizer out: self-supervised pretraining.

    python stages/pretrain.py --config stages/profiles/tiny/pretrain.yaml --output runs/tiny/pretrain

With --parent it goes on from another model of the objective's family, whose tokenizer and sizes it inherits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline import objectives
from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Signature, Stage
from pipeline.chain.starter import Facts, Lines
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.objectives import Objective
from pipeline.system.config import library_class, option, refuse_unread
from pipeline.system.errors import UserError
from pipeline.system.words import counted
from pipeline.training.attention import AttentionOptions


class Pretraining(Stage):
    """Train a tokenizer and a model on text, or go on from a parent's."""

    title = "Pretraining"
    about = "A base model, pretrained on raw text: it was never taught to answer."
    reads = "text"
    given_as = "text"
    streams = True
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("causal",), **objectives.roles()}  # as the objective says
    optional = tuple(takes)
    library = "transformers.TrainingArguments"
    defaults: ClassVar[dict[str, Any]] = {"lr_scheduler_type": "warmup_stable_decay"}

    @dataclass(frozen=True)
    class Options(AttentionOptions):
        """Our own options of pretraining."""

        recipe: str = option("world", "data recipe that gives text")
        objective: str = option("causal", "self-supervised objective, a file in pipeline/objectives")
        objective_options: dict[str, Any] = option({}, "its options, such as {whole_words: true}")  # noqa: RUF009
        architecture: str = option("", "model type that transformers knows; empty takes the objective's first")
        hidden_size: int = option(128, "width of the model", at_least=1)
        num_hidden_layers: int = option(4, "depth of the model", at_least=1)
        num_attention_heads: int = option(4, "attention heads a layer", at_least=1)
        vocab_size: int = option(1024, "tokens of the vocabulary that is trained on the text", at_least=1)
        tokenizer_recipe: str = option(
            "", "data recipe whose text the vocabulary is trained on; empty: the text itself", omitted=True
        )
        max_length: int = option(256, "tokens in a row; longer documents are split, none is lost", at_least=8)
        language: str = option("en", "of the text, for objectives that read sentences")
        flops: float = option(
            0.0, "stop after so many floating point operations, if the epochs are not over before; 0: no limit", at_least=0.0
        )

        @property
        def chosen(self) -> Objective:
            """The objective with its options."""
            return objectives.load(self.objective, self.objective_options)

    def signature(self, options: Options) -> Signature:
        """Return the objective's families."""
        objective = options.chosen
        refuse_unread(options, objective.unread, f"the objective {options.objective}")
        takes = {PARENT: objective.accepts, **objective.towers}
        return Signature(objective.reads, takes, objective.family, optional=tuple(takes))

    def digests(self, options: Options) -> dict[str, str]:
        """Return that of the text that the tokenizer is trained on, where it is another."""
        from pipeline.data import recipe as recipes

        other = options.tokenizer_recipe
        return {"text of the tokenizer": recipes.load(other).digest("text")} if other else {}

    def families(self) -> tuple[str, ...]:
        """Return what any objective goes on from."""
        return tuple({family: None for name in objectives.known() for family in objectives.load(name).accepts})

    def judged_by(self, options: Options) -> tuple[Against, ...]:
        """Return what the objective is judged by."""
        return options.chosen.judged_by

    def evaluators(self, options: Options) -> Sequence[Any]:
        """Return what asks a model that is not causal the objective's own questions."""
        return library_class("pipeline.objectives.evaluator.EVALUATORS")(options)  # type: ignore[no-any-return]

    def modules(self, options: Options) -> list[Path]:
        """Return the files of the objective and of those that it is made of."""
        chosen = options.chosen
        return [Path(str(sys.modules[type(one).__module__].__file__)) for one in (chosen, *chosen.others())]

    def positions(self, options: Options) -> int:
        """Return `max_length`."""
        return options.max_length

    def parameters(self, options: Options) -> int:
        """Return the twelve matrices of width by width that a layer has at least, as often as there are layers of its own."""
        objective = options.chosen
        shared = (options.architecture or [*objective.architectures, ""][0]) == "albert"
        layers = 0 if objective.family == "vectors" else 1 if shared else options.num_hidden_layers
        return 12 * layers * options.hidden_size**2

    def note(self, options: Options) -> str:
        """Return what the objective says of its batches."""
        return options.chosen.note

    def load_model(self, options: Options, folder: str) -> Any:
        """Return the objective's model."""
        return options.chosen.load_model(folder)

    def processor(self, options: Options, folder: str) -> Any:
        """Return the objective's."""
        return options.chosen.processor(folder)

    def sample_inputs(self, options: Options) -> dict[str, Any]:
        """Return the objective's."""
        return options.chosen.sample_inputs()

    def pipeline_tag(self, options: Options) -> str:
        """Return the objective's."""
        return options.chosen.pipeline_tag

    def length(self, row: Row, tokenizer: Any) -> int:
        """Return the tokens of a document, of which none is lost."""
        from pipeline.data import tokens

        return len(tokens.encode_text(row, tokenizer)["input_ids"])

    def starter(self, facts: Facts) -> dict[str, Lines]:
        """Return one node: a new model that fits the text, or one that goes on from the base at a low rate."""
        model = facts.model
        if facts.parent:
            rate, epochs = 1e-3 if model.small else 1e-4, max(1, min(4, 500_000 // max(1, facts.tokens)))
            found = facts.reading() | facts.training(facts.batch(epochs, 8), epochs)
            return {"": found | {"learning_rate": (rate, "low, since the base knows its language already")}}
        rate = 3e-3 if model.parameters < 1_500_000 else 2e-3
        epochs = max(1, min(8, 2_000_000 // max(1, facts.tokens)))
        sizes: Lines = {
            "hidden_size": (
                model.hidden_size,
                f"width; {model.parameters / 1e6:.1f}M parameters in all, which fits this much text",
            ),
            "num_hidden_layers": (model.layers, "depth"),
            "num_attention_heads": (model.heads, f"of {model.hidden_size // model.heads} dimensions each"),
            "vocab_size": (model.vocab_size, "tokens that are learned from the text; a larger text allows more"),
        }
        schedule: Lines = {
            "learning_rate": (rate, "high, as a small model from nothing needs it"),
            "lr_scheduler_kwargs": ({"min_lr_ratio": 0.02}, "the rate falls to 2% in the last 40% of the steps"),
        }
        return {"": facts.reading() | sizes | facts.training(facts.batch(epochs, 8), epochs) | schedule | facts.steady()}

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return the objective's examples: packed where the model keeps documents apart, else numbered."""
        from pipeline.data import packing, token_tables
        from pipeline.training import attention, guards
        from pipeline.training.loop import prepare, streamed

        options: Pretraining.Options = run.options
        objective = options.chosen

        def examples(part: Rows) -> Iterator[objectives.Example]:
            return objective.examples(
                objectives.Text(
                    part.kept,
                    tokenizer,
                    options.max_length,
                    options.language,
                    run.seed,
                    part.dropped_by_encoding,
                    part.truncated,
                )
            )

        settings = [options.objective, options.objective_options, options.max_length, options.language, run.seed]
        dataset = prepare(run, rows, examples, tokenizer, *settings, by_part=objective.by_row)
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        collator = objective.collator(tokenizer, dataset, run.seed)
        packs = objective.packs and attention.keeps_apart(model)
        if rows.stream:
            return Batches(streamed(run, rows, examples, options.max_length if packs else 0), collator, {})
        dataset = packing.pack(dataset, options.max_length, run.say) if packs else token_tables.numbered(dataset)
        return Batches(dataset, collator, {})

    def train(self, run: Run) -> None:
        """Train tokenizer and model, or go on from a parent's."""
        from transformers import set_seed

        from pipeline.training import attention, guards
        from pipeline.training.flops import steps_for
        from pipeline.training.loop import DEFAULTS, FORCED, decay, fit, hand_over
        from pipeline.training.trainer import ObjectiveTrainer

        options: Pretraining.Options = run.options
        objective = options.chosen
        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
        guards.batches(objective, arguments)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = self._opened(run, rows)
        guards.fits_parent(model, tokenizer, options.max_length)
        made = self.batches(run, rows, tokenizer, model)
        attention.choose(run, model, made.collator, options.max_length)
        run.say(
            f"{model.num_parameters():,} parameters, {counted(len(made.dataset), 'row')}, {objective.sized(tokenizer, options.max_length)}"
        )
        trainer = ObjectiveTrainer(objective, model, arguments, made.collator, made.dataset, processing_class=tokenizer)
        if options.flops:
            arguments.max_steps = steps_for(options.flops, objective, trainer)
            run.say(f"{options.flops:.2g} floating point operations allow {arguments.max_steps:,} steps")
        decay(arguments, len(made.dataset))
        fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, {}, objective.save)

    @staticmethod
    def _opened(run: Run, rows: Rows) -> tuple[Any, Any]:
        """Return the parent's tokenizer and model, or new ones."""
        options: Pretraining.Options = run.options
        objective = options.chosen
        towers = {role: where for role, where in run.parents.items() if role in objective.towers}
        if run.parent and towers:
            raise UserError(f"{next(iter(towers))}: a model that goes on from a parent has its own; leave it or the parent out")
        if run.parent:
            run.say(f"tokenizer and sizes from {run.parent}")
            tokenizer, model = objective.processor(run.parent), objective.load_model(run.parent)
            if unread := _other_sizes(options, model, objective.vocabulary(tokenizer)):
                run.say(f"{unread}; a model that goes on from a parent keeps the parent's, so leave it out")
            return tokenizer, model
        for role, where in towers.items():
            run.say(f"{role.replace('_', ' ')} from {where}")
        learned: list[Any] = []

        def learn() -> Any:
            learned.append(_trained(run, rows))
            return learned[0]

        tokenizer, model = objective.begin(
            towers, learn, options.architecture or objective.architectures[0], hidden_size=options.hidden_size,
            num_hidden_layers=options.num_hidden_layers, num_attention_heads=options.num_attention_heads,
            max_position_embeddings=options.max_length,
        )  # fmt: skip
        if towers and not learned and (unread := _other_sizes(options, model, objective.vocabulary(tokenizer))):
            run.say(f"{unread}, whose tokenizer is kept; leave it out")
        return tokenizer, model


def _other_sizes(options: Pretraining.Options, model: Any, vocabulary: int) -> str:
    """Return in words which sizes of a new model were given that are not those of the parent."""
    theirs = {name: getattr(model.config, name, None) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    theirs["vocab_size"] = vocabulary
    usual = Pretraining.Options()
    return ", ".join(
        f"{name} is not read: {getattr(options, name):,}, the parent has {found:,}"
        for name, found in theirs.items()
        if found and getattr(options, name) not in (found, getattr(usual, name))
    )


def _trained(run: Run, rows: Rows) -> Any:
    """Return a tokenizer that is trained on the rows, or those of its own recipe: kept from before, where it was."""
    from pipeline.data import recipe as recipes
    from pipeline.data.rows import sample
    from pipeline.models import tokenization

    options: Pretraining.Options = run.options
    other, kind = options.tokenizer_recipe, options.chosen.tokenizer_type
    rows = recipes.load(other).rows("text", "train", run.seed) if other else rows

    def train() -> Any:
        texts, said = sample(rows.kept, tokenization.MOST, run.seed)
        run.say(f"trains a tokenizer of {options.vocab_size:,} tokens on {said}")
        return tokenization.train(texts, options.vocab_size, options.max_length, kind)

    return tokenization.kept(rows.identity, [options.vocab_size, options.max_length, kind, run.seed], train)


STAGE = Pretraining

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

"""Raw text in, a base model with its own tokenizer out: self-supervised pretraining.

    python stages/pretrain.py --config stages/profiles/tiny/pretrain.yaml --output runs/tiny/pretrain

With --parent it goes on from another model of the objective's family, whose tokenizer and sizes it inherits.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from pipeline import objectives
from pipeline.system.config import option
from pipeline.objectives import Objective
from pipeline.chain.stage import Edges, Run, Stage, run_stage


@dataclass(frozen=True)
class Options:
    """Our own options of pretraining."""

    recipe: str = option("world", "data recipe that gives text")
    objective: str = option("causal", "self-supervised objective, a file in pipeline/objectives")
    objective_options: dict[str, Any] = option({}, "its options, such as {whole_words: true}")  # noqa: RUF009
    architecture: str = option("", "model type that transformers knows; empty takes the objective's first")
    hidden_size: int = option(128, "width of the model", at_least=1)
    num_hidden_layers: int = option(4, "depth of the model", at_least=1)
    num_attention_heads: int = option(4, "attention heads a layer", at_least=1)
    vocab_size: int = option(1024, "tokens of the vocabulary that is trained on the text", at_least=1)
    max_length: int = option(256, "tokens in a row; longer documents are split, none is lost", at_least=8)
    language: str = option("en", "of the text, for objectives that read sentences")
    flops: float = option(
        0.0, "stop after so many floating point operations, if the epochs are not over before; 0 for no limit"
    )

    @property
    def chosen(self) -> Objective:
        """The objective with its options."""
        return objectives.load(self.objective, self.objective_options)


def edges(options: Options) -> Edges:
    """Return the family of the model that comes out, and those of a parent that may go in."""
    return Edges("text", options.chosen.family, options.chosen.accepts)


STAGE = Stage(
    name="pretrain", edges=edges, options=Options, arguments="transformers.TrainingArguments",
    needs_parent=False, defaults={"lr_scheduler_type": "warmup_stable_decay"},
)  # fmt: skip


def train(run: Run) -> None:
    """Train the vocabulary and the model, or go on from a parent's."""
    from transformers import set_seed

    from pipeline.models import tokenizer
    from pipeline.training.loop import guards
    from pipeline.data import tokens
    from pipeline.training.flops import steps_for
    from pipeline.training.trainer import ObjectiveTrainer
    from pipeline.training.loop import DEFAULTS, FORCED, decay, fit, hand_over, prepare

    options: Options = run.options
    objective = options.chosen
    arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
    guards.batches(objective, arguments)
    rows = run.recipe.rows("text", "train", run.seed)
    set_seed(run.seed)
    if run.parent:
        vocabulary, model = tokenizer.load(run.parent), objective.load_model(run.parent)
        run.say(f"tokenizer and sizes from {run.parent}")
    else:
        run.say(f"trains a tokenizer of {options.vocab_size:,} tokens on {len(rows.kept):,} rows")
        texts = (row["text"] for row in rows.kept)
        vocabulary = tokenizer.train(texts, options.vocab_size, options.max_length, objective.vocabulary)
        model = objective.build_model(
            vocabulary, options.architecture or objective.architectures[0], hidden_size=options.hidden_size,
            num_hidden_layers=options.num_hidden_layers, num_attention_heads=options.num_attention_heads,
            max_position_embeddings=options.max_length,
        )  # fmt: skip
    guards.fits_parent(model, vocabulary, options.max_length)
    text = objectives.Text(rows.kept, vocabulary, options.max_length, options.language, run.seed, rows.late, rows.left_out)
    dataset = prepare(run, rows, objective.examples(text))
    guards.learns(dataset, rows.dropped + rows.late)
    collator = objective.collator(vocabulary, dataset, run.seed)
    packs = objective.packs and tokens.keeps_apart(model)
    dataset = tokens.pack(dataset, options.max_length) if packs else tokens.numbered(dataset)
    run.say(
        f"{model.num_parameters():,} parameters, vocabulary {len(vocabulary):,}, {len(dataset):,} rows of up to {options.max_length} tokens"
    )
    trainer = ObjectiveTrainer(objective, model, arguments, collator, dataset, processing_class=vocabulary)
    if options.flops:
        arguments.max_steps = steps_for(options.flops, objective, trainer)
        run.say(f"{options.flops:.2g} floating point operations allow {arguments.max_steps:,} steps")
    decay(arguments, len(dataset))
    fit(run, trainer, rows)
    hand_over(run, trainer, vocabulary, {}, objective.save)


if __name__ == "__main__":
    sys.exit(run_stage(STAGE, train, str(__doc__)))

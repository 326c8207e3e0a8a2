"""Raw text in, a base model with its own tokenizer out: self-supervised pretraining.

    python stages/pretrain.py --config stages/profiles/tiny/pretrain.yaml --output runs/tiny/pretrain

With --parent it goes on from another causal model, whose tokenizer and sizes it inherits.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pipeline.config import option
from pipeline.stage import Run, Stage, run_stage


@dataclass(frozen=True)
class Options:
    """Our own options of pretraining."""

    recipe: str = option("world", "data recipe that gives text")
    objective: str = option("causal", "self-supervised objective, a file in pipeline/objectives")
    architecture: str = option("llama", "model type that transformers knows")
    hidden_size: int = option(128, "width of the model", at_least=1)
    num_hidden_layers: int = option(4, "depth of the model", at_least=1)
    num_attention_heads: int = option(4, "attention heads a layer", at_least=1)
    vocab_size: int = option(1024, "tokens of the byte-level BPE that is trained on the text", at_least=1)
    max_length: int = option(256, "tokens in a row; longer documents are split, none is lost", at_least=2)


STAGE = Stage(
    name="pretrain", shape="text", options=Options, arguments="transformers.TrainingArguments", family="causal",
    accepts=("causal",), needs_parent=False, defaults={"lr_scheduler_type": "warmup_stable_decay"},
)  # fmt: skip


def train(run: Run) -> None:
    """Train the tokenizer and the model, or go on from a parent's."""
    from transformers import set_seed

    from pipeline import checkpoint, guards, objectives, tokenizer
    from pipeline.data import tokens
    from pipeline.trainer import StageTrainer
    from pipeline.training import DEFAULTS, FORCED, decay, fit, hand_over, prepare

    options: Options = run.options
    objective = objectives.load(options.objective)
    arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
    rows = run.recipe.rows("text", "train", run.seed)
    set_seed(run.seed)
    if run.parent:
        vocabulary, model = tokenizer.load(run.parent), checkpoint.load(run.parent)
        run.say(f"tokenizer and sizes from {run.parent}")
    else:
        run.say(f"trains a tokenizer of {options.vocab_size:,} tokens on {len(rows.kept):,} rows")
        vocabulary = tokenizer.train((row["text"] for row in rows.kept), options.vocab_size, options.max_length)
        model = objective.build_model(
            vocabulary, options.architecture, hidden_size=options.hidden_size, num_hidden_layers=options.num_hidden_layers,
            num_attention_heads=options.num_attention_heads, intermediate_size=_width(options.hidden_size),
            max_position_embeddings=options.max_length,
        )  # fmt: skip
    guards.fits_parent(model, vocabulary, options.max_length)
    dataset = prepare(run, rows, lambda row: objective.encode(row, vocabulary), options.max_length, split=True)
    guards.learns(dataset, rows.dropped)
    sample = dataset[0]["input_ids"]
    if tokens.keeps_apart(model):
        dataset = tokens.pack(dataset, options.max_length)
    run.say(
        f"{model.num_parameters():,} parameters, vocabulary {len(vocabulary):,}, {len(dataset):,} rows of up to {options.max_length} tokens"
    )
    decay(arguments, len(dataset))
    trainer = StageTrainer(model, arguments, objective.collator(vocabulary), dataset, processing_class=vocabulary)
    fit(run, trainer, rows)
    hand_over(run, trainer, vocabulary, sample)


def _width(hidden_size: int) -> int:
    """Return the width of the feed-forward layer: 8/3 of the hidden size, as Llama has it, in steps of 32."""
    return -(-hidden_size * 8 // 3 // 32) * 32


if __name__ == "__main__":
    sys.exit(run_stage(STAGE, train, str(__doc__)))

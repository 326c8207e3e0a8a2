"""A chat model and pairs of answers in, an aligned model out: direct preference optimisation.

    python stages/dpo.py --config stages/profiles/tiny/dpo.yaml --parent runs/tiny/sft --output runs/tiny/dpo

Rafailov et al. 2023, eq. 7. The reference is the parent itself: the merged SFT model with the adapter off.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from pipeline.system.config import option
from pipeline.chain.stage import Edges, Run, Stage, run_stage


@dataclass(frozen=True)
class Options:
    """Our own options of DPO."""

    recipe: str = option("world", "data recipe that gives pairs")
    chat_template: str = option("", "file with a chat template; empty keeps the parent's own")
    method: Literal["lora", "full"] = option("lora", "lora, or full to train every parameter against a frozen copy")
    lora_rank: int = option(16, "rank of the adapter", at_least=1)
    lora_alpha: int = option(32, "scale of the adapter times its rank", at_least=1)


STAGE = Stage(
    name="dpo", edges=Edges("preference"), options=Options, arguments="trl.DPOConfig",
    defaults={"learning_rate": 5e-5, "max_length": 1024},
)  # fmt: skip


def train(run: Run) -> None:
    """Train on pairs against the parent and hand on a merged model."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOTrainer

    from pipeline.models import checkpoint, tokenizer
    from pipeline.training.loop import guards
    from pipeline.data import tokens
    from pipeline.training.trainer import StageTrainer
    from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over, prepare

    class Pairs(StageTrainer, DPOTrainer):
        """trl's trainer on pairs that went through our chat template already."""

        def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
            return dataset

    options: Options = run.options
    arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
    rows = run.recipe.rows("preference", "train", run.seed)
    set_seed(run.seed)
    vocabulary, model = tokenizer.load(run.parent or ""), checkpoint.load(run.parent or "")
    tokenizer.set_template(vocabulary, options.chat_template, run.parent or "")
    guards.fits_parent(model, vocabulary, arguments.max_length)
    examples = tokens.pieces(rows.kept, lambda row: tokens.encode_pair(row, vocabulary), arguments.max_length, False, rows.late)
    dataset = prepare(run, rows, examples)
    guards.learns(dataset, rows.dropped + rows.late)
    guards.differ(dataset)
    dataset = dataset.add_column("length", [tokens.pair_length(row) for row in dataset])  # for sampling by length
    adapter = checkpoint.lora(options.lora_rank, options.lora_alpha) if options.method == "lora" else None
    reference = None if adapter else checkpoint.load(run.parent or "")
    trainer = Pairs(model, reference, arguments, train_dataset=dataset, processing_class=vocabulary, peft_config=adapter)
    sample = dataset[0]["prompt_ids"] + dataset[0]["chosen_ids"]
    fit(run, trainer, rows)
    hand_over(run, trainer, vocabulary, {"input_ids": sample})


if __name__ == "__main__":
    sys.exit(run_stage(STAGE, train, str(__doc__)))

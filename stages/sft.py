"""A base model and conversations in, a chat model that stops by itself out: supervised fine-tuning.

    python stages/sft.py --config stages/profiles/tiny/sft.yaml --parent runs/tiny/pretrain --output runs/tiny/sft

Trains on the assistant's tokens alone. LoRA by default, merged at the end; the parent may be any causal
model folder or hub id. With `init: random` it is the control: the same rows and steps from random weights.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.chain.stage import Edges, Run, Stage, run_stage


@dataclass(frozen=True)
class Options:
    """Our own options of SFT."""

    recipe: str = option("world", "data recipe that gives messages")
    chat_template: str = option("", "file with a chat template; empty keeps the parent's own")
    method: Literal["lora", "full"] = option("lora", "lora, or full to train every parameter")
    init: Literal["parent", "random"] = option("parent", "parent, or random for the control")
    lora_rank: int = option(16, "rank of the adapter", at_least=1)
    lora_alpha: int = option(32, "scale of the adapter times its rank", at_least=1)


STAGE = Stage(
    name="sft", edges=Edges("messages"), options=Options, arguments="trl.SFTConfig",
    defaults={"learning_rate": 2e-4, "max_length": 1024},
)  # fmt: skip


def train(run: Run) -> None:
    """Fine-tune on conversations and hand on a merged model."""
    from transformers import AutoModelForCausalLM, set_seed
    from trl import SFTTrainer

    from pipeline.models import checkpoint, tokenizer
    from pipeline.training.loop import guards
    from pipeline.data import tokens
    from pipeline.training.trainer import StageTrainer
    from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over, prepare

    class Conversations(StageTrainer, SFTTrainer):
        """trl's trainer, watched for a loss that is not finite."""

    options: Options = run.options
    arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED, dataset_kwargs={"skip_prepare_dataset": True})
    if not arguments.max_length:
        raise UserError("max_length: SFT packs rows of a fixed length; give a number")
    rows = run.recipe.rows("messages", "train", run.seed)
    set_seed(run.seed)
    vocabulary, model = tokenizer.load(run.parent or ""), checkpoint.load(run.parent or "")
    guards.fits_parent(model, vocabulary, arguments.max_length)
    added = tokenizer.set_template(vocabulary, options.chat_template, run.parent or "")
    if options.init == "random":
        model = AutoModelForCausalLM.from_config(model.config)
    if len(vocabulary) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(vocabulary))
        run.say(f"adds {', '.join(added)} to the vocabulary, which the chat template needs")
    examples = tokens.pieces(
        rows.kept, lambda row: tokens.encode_messages(row["messages"], vocabulary), arguments.max_length, False, rows.late
    )
    dataset = prepare(run, rows, examples)
    guards.learns(dataset, rows.dropped + rows.late)
    guards.stops(dataset, vocabulary, tokenizer.end_token(vocabulary))
    guards.speaks(rows.kept, vocabulary)
    sample = dataset[0]["input_ids"]
    known = {vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.pad_token_id}
    markers = sorted(set(sample) & set(vocabulary.all_special_ids) - known)  # chat tokens that pretraining did not see
    adapter = checkpoint.lora(options.lora_rank, options.lora_alpha, model, markers) if options.method == "lora" else None
    if tokens.keeps_apart(model):
        dataset = tokens.pack(dataset, arguments.max_length)
    collator = tokens.CausalCollator(int(vocabulary.pad_token_id))
    trainer = Conversations(
        model, arguments, data_collator=collator, train_dataset=dataset, processing_class=vocabulary, peft_config=adapter
    )
    checkpoint.give_head_a_bias(trainer.model)
    fit(run, trainer, rows)
    hand_over(run, trainer, vocabulary, {"input_ids": sample})


if __name__ == "__main__":
    sys.exit(run_stage(STAGE, train, str(__doc__)))

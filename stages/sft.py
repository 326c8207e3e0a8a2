"""A base model and conversations in, a chat model that stops by itself out: supervised fine-tuning.

    python stages/sft.py --config stages/profiles/tiny/sft.yaml --parent runs/tiny/pretrain --output runs/tiny/sft

Trains on the assistant's tokens alone. LoRA by default, merged at the end; the parent may be any causal model folder
or hub id.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import Against, Stage
from pipeline.chain.starter import Facts, Lines
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.training.attention import AttentionOptions
from pipeline.training.chat import QuantizedOptions


class SFT(Stage):
    """Fine-tune on conversations and hand on a merged model."""

    title = "SFT"
    about = "A chat model: fine-tuned on conversations, on the assistant's tokens alone."
    reads = "messages"
    given_as = "chats"
    library = "trl.SFTConfig"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 2e-4}
    ignores: ClassVar[dict[str, str]] = {
        "pad_to_multiple_of": "rows are packed, or as long as the longest one of a batch",
        "shuffle_dataset": "rows are drawn in an order by seed; see train_sampling_strategy",
    }
    primary = (Against("exact_match", "parent"), Against("loss", "parent"))

    @dataclass(frozen=True)
    class Options(AttentionOptions, QuantizedOptions):
        """Options of SFT."""

    def length(self, row: Row, tokenizer: Any) -> int:
        """Return the tokens of a conversation in the chat template."""
        from pipeline.data import tokens

        return len(tokens.encode_messages(row["messages"], tokenizer)["input_ids"])

    def starter(self, facts: Facts) -> dict[str, Lines]:
        """Return LoRA on the parent, and its control from random weights."""
        small = facts.model.small
        epochs = 4 if small else 2
        rate = (2e-3, "high, as LoRA on a small model needs it") if small else (5e-4, "usual for LoRA on a model of this size")
        found = facts.reading() | facts.template() | facts.training(facts.batch(epochs, 8 if small else 4), epochs)
        control: Lines = {
            "control_of": (
                self.kind,
                "its rows and steps, without what the parent knows: the report holds one against the other",
            ),
            "init": ("random", "new weights of the same sizes"),
            "method": ("full", "every parameter is trained: an adapter on random weights could learn nothing"),
            "learning_rate": (1e-3 if small else 3e-4, "for all parameters, where the adapter's would be too high"),
        }
        return {"": found | {"learning_rate": rate} | facts.steady(), "-control": control}

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return conversations, the assistant's tokens being the targets; packed where the model keeps them apart."""
        from pipeline.data import shown, tokens
        from pipeline.models import tokenization
        from pipeline.training import guards
        from pipeline.training.chat import row_length
        from pipeline.training.loop import prepare

        longest = row_length(run, model)

        def examples(part: Rows) -> Iterator[dict[str, Any]]:
            return tokens.pieces(
                part.kept,
                lambda row: shown.conversation(row["messages"], tokenizer),
                longest,
                False,
                part.dropped_by_encoding,
                part.too_long,
            )

        dataset = prepare(run, rows, examples, tokenizer, longest)
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        guards.stops(dataset, tokenizer, tokenization.end_token(tokenizer))
        sample = {"input_ids": dataset[0]["input_ids"]}
        if tokens.keeps_apart(model):
            dataset = tokens.pack(dataset, longest, run.say)
        return Batches(dataset, tokens.CausalCollator(int(tokenizer.pad_token_id)), sample)

    def train(self, run: Run) -> None:
        """Train the adapter, or every parameter."""
        from transformers import set_seed
        from trl import SFTTrainer

        from pipeline.training import attention, scoring
        from pipeline.training.adapter import give_head_a_bias
        from pipeline.training.chat import open_parent, row_length, turn_markers
        from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over
        from pipeline.training.output_rows import begin_rows, settle_rows
        from pipeline.training.trainer import StageTrainer

        class Conversations(StageTrainer, SFTTrainer):
            """trl's trainer, watched for a loss that is not finite."""

        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED, dataset_kwargs={"skip_prepare_dataset": True})
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        named, alone = begin_rows(run.options, tokenizer, model), run.options.method == "rows"
        arguments.max_length = row_length(run, model)
        made = self.batches(run, rows, tokenizer, model)
        attention.choose(run, model, made.collator, arguments.max_length)
        if alone:
            settle_rows(model, made.dataset, made.collator, named)
        markers = [] if alone else turn_markers(tokenizer, made.sample["input_ids"])
        adapter = run.options.adapter(model, sorted({*named, *markers}))
        trainer = Conversations(
            model, arguments, data_collator=made.collator, train_dataset=made.dataset, processing_class=tokenizer, peft_config=adapter
        )  # fmt: skip
        give_head_a_bias(trainer.model)
        scoring.score_answers_alone(trainer.model.get_base_model() if adapter else trainer.model)  # type: ignore[operator, union-attr]
        fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, made.sample)


STAGE = SFT

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

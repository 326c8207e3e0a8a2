"""A base model and conversations in, a chat model that stops by itself out: supervised fine-tuning.

    python stages/sft.py --config stages/profiles/tiny/sft.yaml --parent runs/tiny/pretrain --output runs/tiny/sft

Trains on the assistant's tokens alone. LoRA by default, merged at the end; the parent may be any causal model folder
or hub id. With `tower: frozen` or `trained` the rows may hold pictures: the result is the library's LLaVA (Liu et al. 2023), of
the parent and the vision transformer that is named by `vision`, or the parent is one already. With `method: cross_attention` it is
its Idefics (Flamingo, Alayrac et al. 2022), in which the parent stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Predictor, Signature, Stage
from pipeline.chain.starter import Facts, Lines
from pipeline.data.batches import Batches, CausalCollator
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.system import config
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.training import vision_language
from pipeline.training.attention import AttentionOptions
from pipeline.training.chat import QuantizedOptions

_CAPTIONS = "pipeline.training.captions"  # by name, since what measures a model is no part of how it is made


class SFT(Stage):
    """Fine-tune on conversations and hand on a merged model."""

    title = "SFT"
    about = "A chat model: fine-tuned on conversations, on the assistant's tokens alone."
    reads = "messages"
    given_as = "chats"
    takes: ClassVar[dict[str, tuple[str, ...]]] = {
        PARENT: ("causal", "vision_language"),
        vision_language.TOWER: vision_language.TOWER_FAMILIES,
    }
    optional = (vision_language.TOWER,)
    library = "trl.SFTConfig"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 2e-4}
    ignores: ClassVar[dict[str, str]] = {
        "pad_to_multiple_of": "rows are packed, or as long as the longest one of a batch",
        "shuffle_dataset": "rows are drawn in an order by seed; see train_sampling_strategy",
    }
    primary = (Against("exact_match", "parent"), Against("loss", "parent"))

    @dataclass(frozen=True)
    class Options(vision_language.VisionLanguageOptions, AttentionOptions, QuantizedOptions):
        """Options of SFT."""

        method: Literal["lora", "full", "rows", "projector", "cross_attention"] = option(  # type: ignore[assignment]  # one way more
            "lora",
            "lora, full to train every parameter, rows to train nothing but the output rows of some tokens, projector to train nothing but what makes tokens of a picture's patches, or cross_attention to train nothing but gated cross-attention to pictures and the resampler before it",
        )
        init: Literal["parent", "random", "random_tower"] = option(  # type: ignore[assignment]  # one way more
            "parent", "parent, or random weights of the same sizes, for a control: of all, or of the vision tower alone"
        )

    def signature(self, options: Options) -> Signature:
        """Return what is read and given, with pictures or without; UserError where options need a tower that is not there."""
        faults = []
        if not options.tower:
            asked = {
                f"method: {options.method}": options.method in vision_language.CONNECTOR_METHODS,
                "init: random_tower": options.init == "random_tower",
            }
            faults = [
                f"{key} is about a model that reads pictures; set tower: frozen or trained" for key, one in asked.items() if one
            ]
        elif options.method == "rows":
            faults = ["method: rows trains tokens by name, and reads no pictures; leave tower out"]
        elif options.tower == "trained" and options.method in vision_language.CONNECTOR_METHODS:
            faults = [
                f"tower: trained: method: {options.method} trains nothing but what lies between tower and language model; set tower: frozen, "
                "or method: lora or full"
            ]
        if faults:
            raise UserError(*faults)
        return vision_language.signature(options, Signature(self.reads, {PARENT: ("causal",)}, self.gives), joins=True)

    def judged_by(self, options: Options) -> tuple[Against, ...]:
        """Return right answers and the loss, against the parent; of a model that sees also against other pictures than the right ones."""
        return (*self.primary, Against("loss", "shuffled pictures")) if options.tower else self.primary

    def evaluators(self, options: Options) -> Sequence[Any]:
        """Return the measure of captions, where pictures are read."""
        return (config.library_class(f"{_CAPTIONS}.Captions")(),) if options.tower else ()

    def predictor(self, options: Options, folder: str) -> Predictor | None:
        """Return what writes captions of pictures, where these are read."""
        return config.library_class(f"{_CAPTIONS}.predictor")(folder) if options.tower else None

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
        from pipeline.data import packing, shown, tokens
        from pipeline.data.image_inputs import ImageCollator
        from pipeline.models import tokenization
        from pipeline.training import attention, guards
        from pipeline.training.chat import row_length
        from pipeline.training.loop import prepare

        longest, image_inputs = row_length(run, model), vision_language.load_image_inputs(run, model)

        def examples(part: Rows) -> Iterator[dict[str, Any]]:
            return tokens.pieces(
                part.kept,
                lambda row: vision_language.add_images(image_inputs, row, shown.conversation(row["messages"], tokenizer)),
                longest,
                False,
                part.dropped_by_encoding,
                part.too_long,
            )

        dataset = prepare(run, rows, examples, tokenizer, *vision_language.encoding_settings(image_inputs, longest))
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        guards.stops(dataset, tokenizer, tokenization.end_token(tokenizer))
        sample = vision_language.sample_columns(image_inputs, dataset[0], dataset[0]["input_ids"])
        if image_inputs:  # whose rows are not packed
            return Batches(dataset, ImageCollator(image_inputs, int(tokenizer.pad_token_id)), sample)
        if attention.keeps_apart(model):
            dataset = packing.pack(dataset, longest, run.say)
        return Batches(dataset, CausalCollator(int(tokenizer.pad_token_id)), sample)

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

        arguments = run.library_arguments(
            **DEFAULTS | vision_language.default_arguments(run.options) | run.arguments | FORCED,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        model = vision_language.build_model(run, tokenizer, model)
        named, alone = begin_rows(run.options, tokenizer, model), run.options.method == "rows"
        arguments.max_length = row_length(run, model)
        made = self.batches(run, rows, tokenizer, model)
        attention.choose(run, model, made.collator, arguments.max_length)
        if alone:
            settle_rows(model, made.dataset, made.collator, named)
        markers = [] if alone else turn_markers(tokenizer, made.sample["input_ids"])
        vision_language.set_trainable(model, run.options)
        adapter = vision_language.adapter(model, run.options, sorted({*named, *markers}))
        trainer = Conversations(
            model, arguments, data_collator=made.collator, train_dataset=made.dataset, processing_class=tokenizer, peft_config=adapter
        )  # fmt: skip
        give_head_a_bias(trainer.model)
        trained: Any = trainer.model
        scoring.score_answers_alone(trained.get_base_model() if adapter else trained)
        fit(run, trainer, rows)
        hand_over(
            run, trainer, tokenizer, made.sample, vision_language.save_function(vision_language.load_image_inputs(run, model))
        )


STAGE = SFT

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

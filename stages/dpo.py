"""A chat model and pairs of answers in, an aligned model out: direct preference optimisation.

    python stages/dpo.py --config stages/profiles/tiny/dpo.yaml --parent runs/tiny/sft --output runs/tiny/dpo

Rafailov et al. 2023, eq. 7. The reference is the parent itself. Where every pair is read at least once, what it says is
computed once and kept (pipeline/training/references.py); else it is asked in each step, with the adapter off. With
`tower: frozen` or `trained` the parent is a model that reads pictures, and prompts may hold some.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline import ROOT
from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Signature, Stage
from pipeline.chain.starter import Facts, Lines
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.system.config import read_profile
from pipeline.system.errors import UserError
from pipeline.system.words import meant
from pipeline.training import vision_language
from pipeline.training.chat import QuantizedOptions
from pipeline.training.references import kept_and_moved

SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")  # losses that read label_smoothing
BY_ROW = {
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    *SMOOTHED,
}
WEIGHED = BY_ROW - {"aot", "aot_unpaired", "hinge"}  # losses that use_weighting can be with: trl writes the product in place


def check_losses(arguments: Any) -> None:
    """Raise UserError where a loss is unknown, or label_smoothing is read by none or is no value for one that reads it.

    So are weights that a loss can't have, and a reference that is kept although it moves.
    """
    described = str(type(arguments).__dataclass_fields__["loss_type"].metadata["help"])
    known = BY_ROW | set(re.findall(r"`'(\w+)'`", described))  # those of the library, and so the likelihood
    faults = []
    for name in arguments.loss_type:
        if name not in known:
            remedy = meant(name, known, f"known are {', '.join(sorted(known))}")
            faults.append(f"loss_type: no such loss: {name}; {remedy}")
    smoothing, read = arguments.label_smoothing, [name for name in arguments.loss_type if name in SMOOTHED]
    if smoothing and not read:
        faults.append(
            f"label_smoothing: {' and '.join(arguments.loss_type)} would ignore it; read by {', '.join(SMOOTHED)} alone"
        )
    if read and not 0 <= smoothing < 0.5:
        faults.append(f"label_smoothing: {smoothing}: a share of wrong labels, from 0 to below 0.5")
    if "exo_pair" in read and not smoothing:
        faults.append("label_smoothing: exo_pair needs one above 0, such as 0.001")
    if arguments.use_weighting and (others := sorted(set(arguments.loss_type) - WEIGHED)):
        faults.append(f"use_weighting: trl can't weigh {', '.join(others)}; leave one of them out")
    if faults := [*faults, *kept_and_moved(arguments)]:
        raise UserError(*faults)


class DPO(Stage):
    """Train on pairs against the parent and hand on a merged model."""

    title = "DPO"
    about = "An aligned chat model: direct preference optimisation (Rafailov et al. 2023) on pairs of answers."
    reads = "preference"
    given_as = "pairs"
    library = "trl.DPOConfig"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 5e-5}
    primary = (Against("win_rate", "even chances"), Against("accuracy", "parent"), Against("likelier", "parent"))
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("causal", "vision_language")}

    @dataclass(frozen=True)
    class Options(vision_language.TowerOptions, QuantizedOptions):
        """Options of DPO."""

    def signature(self, options: Options) -> Signature:
        """Return what is read and given, with pictures or without."""
        return vision_language.signature(options, Signature(self.reads, {PARENT: ("causal",)}, self.gives))

    def length(self, row: Row, tokenizer: Any) -> int:
        """Return the tokens of the prompt and the longer side in the chat template."""
        from pipeline.data import tokens

        return tokens.pair_length(tokens.encode_pair(row, tokenizer))

    def starter(self, facts: Facts) -> dict[str, Lines]:
        """Return LoRA on the chat model; every parameter where nothing before it has seen the template's tokens."""
        small = facts.model.small
        measured = read_profile(ROOT / "stages" / "profiles" / "classics" / "dpo.yaml")  # figures of real text
        method: Lines = (
            {} if facts.chats else {"method": ("full", "an adapter would not learn the template's tokens, which are new")}
        )
        rate = (1e-3 if small else 7e-4) if facts.chats else (1e-4 if small else 1e-5)
        loss: Lines = {
            "learning_rate": (rate, "as LoRA needs it" if facts.chats else "for all parameters"),
            "beta": (0.1, "how hard it is held to the parent: higher keeps it nearer"),
            "loss_type": (
                measured["loss_type"],
                "DPO's own loss, and the likelihood of the chosen side, without which a small model falls apart",
            ),
            "loss_weights": ([1.0, 0.4], "of the two; raise the second where answers get worse"),
            "train_sampling_strategy": ("group_by_length", "pairs of like length together: less padding"),
        }
        batch = facts.batch(2, 8, packed=False)
        return {
            "": facts.reading()
            | facts.template()
            | method
            | facts.training(batch, 2, cost=3, packed=False)
            | loss
            | facts.steady()
        }

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return prompts with both sides, their answers ending with the token that ends an answer."""
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        from pipeline.data import shown, sides, token_tables, tokens
        from pipeline.data.image_inputs import ImagePromptCollator
        from pipeline.training import guards
        from pipeline.training.alignment import answers_end
        from pipeline.training.chat import row_length
        from pipeline.training.loop import prepare

        longest, image_inputs = row_length(run, model), vision_language.load_image_inputs(run, model)

        def examples(part: Rows) -> Iterator[dict[str, Any]]:
            pairs = tokens.pieces(
                part.kept,
                lambda row: vision_language.add_images(image_inputs, row, shown.pair(row, tokenizer)),
                longest,
                False,
                part.dropped_by_encoding,
                part.too_long,
            )
            return sides.differing(pairs, part.dropped_by_encoding)

        dataset = prepare(run, rows, examples, tokenizer, *vision_language.encoding_settings(image_inputs, longest))
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        answers_end(dataset, ["chosen_ids", "rejected_ids"], tokenizer)
        dataset = dataset.add_column("length", token_tables.pair_lengths(dataset))  # for sampling by length
        sample = vision_language.sample_columns(image_inputs, dataset[0], dataset[0]["prompt_ids"] + dataset[0]["chosen_ids"])
        collator: Any = DataCollatorForPreference(
            int(tokenizer.pad_token_id), longest, pad_to_multiple_of=run.arguments.get("pad_to_multiple_of")
        )
        collator = ImagePromptCollator(image_inputs, collator, answers=2) if image_inputs else collator
        return Batches(dataset, collator, sample)

    def train(self, run: Run) -> None:
        """Train the adapter, or every parameter, against what the parent says."""
        from transformers import set_seed

        from pipeline.training.alignment import without_dropout
        from pipeline.training.chat import open_parent, row_length
        from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over
        from pipeline.training.preference import PreferenceTrainer

        arguments = run.library_arguments(**DEFAULTS | vision_language.default_arguments(run.options) | run.arguments | FORCED)
        check_losses(arguments)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        model = vision_language.build_model(run, tokenizer, model)
        vision_language.set_trainable(model, run.options)
        without_dropout(run, model, arguments)
        arguments.max_length = row_length(run, model)
        made = self.batches(run, rows, tokenizer, model)
        trainer = PreferenceTrainer(
            run, model, arguments, BY_ROW, data_collator=made.collator, train_dataset=made.dataset, processing_class=tokenizer,
            peft_config=vision_language.adapter(model, run.options, ()),
        )  # fmt: skip
        fit(run, trainer, rows)
        hand_over(
            run, trainer, tokenizer, made.sample, vision_language.save_function(vision_language.load_image_inputs(run, model))
        )


STAGE = DPO

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

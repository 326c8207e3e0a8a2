"""A chat model and answers with a thumb up or down in, an aligned model out: Kahneman-Tversky optimisation.

    python stages/kto.py --config stages/profiles/feedback/kto.yaml --parent runs/feedback/sft --output runs/feedback/kto

Ethayarajh et al. 2024, eq. 7 and 8. The reference is the parent itself. What an answer's gain is held against is an
estimate of the KL divergence to the parent, from prompts with answers to others: of a batch on one device, each prompt
with the answer of the row before it. So per_device_train_batch_size decides which rows are put together and how well the
estimate is averaged, and gradient_accumulation_steps does not stand in for it. Where every row is read at least once,
what the parent says of both answers is computed once and kept (pipeline/training/references.py). With `tower: frozen` or
`trained` the parent is a model that reads pictures, and prompts may hold some, which another row's answer follows, too.
"""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Signature, Stage
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.data.tokens import Tokens
from pipeline.system.errors import UserError
from pipeline.training import vision_language
from pipeline.training.chat import QuantizedOptions
from pipeline.training.references import kept_and_moved

if TYPE_CHECKING:
    from datasets import Dataset


_READ = 1000  # examples that are looked up at once


def mismatched(examples: Iterable[Tokens], size: int) -> Iterator[Tokens]:
    """Yield examples with `KL_completion_ids`: the answer of the row before it in its batch, of the first that of the last.

    A batch of one row, which the last may be, has the answer of the row before it in the batch before.
    """
    left, before = iter(examples), list[Tokens]()
    while batch := list(islice(left, size)):
        others = [batch[number - 1] for number in range(len(batch))] if len(batch) > 1 else (before or batch)[-1:]
        yield from (row | {"KL_completion_ids": other["completion_ids"]} for row, other in zip(batch, others, strict=True))
        before = batch


def shorten(row: Tokens, longest: int) -> bool:
    """Cut what stands after another prompt for the KL alone, so that the row is no longer than `longest`; say whether it was."""
    room, whole = longest - len(row["prompt_ids"]), row["KL_completion_ids"]
    row["KL_completion_ids"] = whole[:room]
    return len(whole) > room


def _arranged(run: Run, dataset: Dataset, arguments: Any, longest: int) -> Dataset:
    """Return examples in their order, each with its length, by which the parent reads them, and with another row's answer."""
    from accelerate import PartialState
    from datasets import Dataset

    from pipeline.data import token_tables

    cut, path = 0, run.output / ".data" / "order.arrow"

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal cut
        blocks = (dataset[start : start + _READ] for start in range(0, len(dataset), _READ))
        found: Iterator[dict[str, Any]] = (
            dict(zip(block, row, strict=True)) for block in blocks for row in zip(*block.values(), strict=True)
        )
        if arguments.loss_type == "kto":
            found = mismatched(found, arguments.per_device_train_batch_size)
        for row in found:
            cut += "KL_completion_ids" in row and shorten(row, longest)
            yield row | {"length": _length(row)}

    with PartialState().main_process_first():
        if run.main:
            token_tables.write(rows(), path)
    if cut:
        run.say(f"{cut:,} answers are cut at max_length {longest} where they stand after another prompt, for the KL alone")
    return Dataset.from_file(str(path))


def _length(row: Mapping[str, Any]) -> int:
    return len(row["prompt_ids"]) + max(len(row["completion_ids"]), len(row.get("KL_completion_ids", ())))


def balance(run: Run, arguments: Any, labels: Sequence[int]) -> None:
    """Set the weights so that both kinds of thumbs weigh the same in sum, unless the profile says otherwise; eq. 8."""
    up, down = sum(labels), len(labels) - sum(labels)
    given = {"desirable_weight", "undesirable_weight"} & run.arguments.keys()
    if not given:
        arguments.desirable_weight, arguments.undesirable_weight = max(1.0, down / up), max(1.0, up / down)
    weights = {"up": arguments.desirable_weight, "down": arguments.undesirable_weight}
    run.record["thumbs"] = {"up": up, "down": down, "weights": weights}
    run.say(
        f"{up:,} thumbs up with weight {weights['up']:.3g}, {down:,} down with weight {weights['down']:.3g}, "
        + ("as the profile says" if given else "so that both kinds count alike")
    )


_LOPSIDED = 1000  # times as much as the other, that one kind of thumb counts


def both_kinds(labels: Sequence[int], dropped: Mapping[str, int]) -> None:
    """Raise UserError where all thumbs are of one kind, from which nothing can be told apart."""
    if len(set(map(bool, labels))) == 1:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise UserError(
            f"all {len(labels):,} thumbs are {'up' if labels[0] else 'down'} ({reasons or 'none was dropped'}); "
            "this stage needs both kinds"
        )


class KTO(Stage):
    """Train on rated answers against the parent and hand on a merged model."""

    title = "KTO"
    about = "An aligned chat model: Kahneman-Tversky optimisation (Ethayarajh et al. 2024) on answers with a thumb up or down."
    reads = "feedback"
    library = "trl.KTOConfig"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 5e-5}
    primary = (Against("win_rate", "even chances"), Against("auc", "parent"))
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("causal", "vision_language")}

    @dataclass(frozen=True)
    class Options(vision_language.TowerOptions, QuantizedOptions):
        """Options of KTO."""

    def signature(self, options: Options) -> Signature:
        """Return what is read and given, with pictures or without."""
        return vision_language.signature(options, Signature(self.reads, {PARENT: ("causal",)}, self.gives))

    def note(self, options: Any) -> str:
        """Return what the batch holds beside what is shown."""
        return "Each row is one rated answer; it is read once more with the answer of the row before it, for the estimate of the KL."

    def arguments(self, run: Run) -> Any:
        """Return the library's arguments; UserError where the KL could not be estimated from a batch."""
        from pipeline.training.loop import DEFAULTS, FORCED

        arguments = run.library_arguments(**DEFAULTS | vision_language.default_arguments(run.options) | run.arguments | FORCED)
        if faults := kept_and_moved(arguments):
            raise UserError(*faults)
        if arguments.loss_type not in ("kto", "apo_zero_unpaired"):
            raise UserError(f"loss_type: {arguments.loss_type}: known are kto, apo_zero_unpaired")
        if arguments.desirable_weight == arguments.undesirable_weight == 0:
            raise UserError(
                "desirable_weight, undesirable_weight: both are 0, so that no row has a loss; give one of them more"
            )
        small, large = sorted((arguments.desirable_weight, arguments.undesirable_weight))
        if small and large > _LOPSIDED * small:
            raise UserError(
                f"desirable_weight, undesirable_weight: with {large:g} and {small:g} one kind of answer counts for nothing; if that is meant, set its weight to 0"
            )
        if arguments.loss_type == "kto" and arguments.per_device_train_batch_size < 2:
            raise UserError("per_device_train_batch_size: 1 has no other answer to estimate the KL from; set it to 2 or more")
        if arguments.loss_type == "kto" and arguments.train_sampling_strategy != "sequential":
            raise UserError(
                f"train_sampling_strategy: {arguments.train_sampling_strategy} would tear apart the rows from which the KL is "
                "estimated; leave it out, since rows are in an order by seed already"
            )
        return arguments

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return rated answers in an order by seed, each with another row's answer beside it."""
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

        from pipeline.data import shown, tokens
        from pipeline.data.image_inputs import ImagePromptCollator
        from pipeline.training import guards
        from pipeline.training.alignment import answers_end
        from pipeline.training.chat import row_length
        from pipeline.training.loop import prepare

        arguments, longest, image_inputs = (
            self.arguments(run),
            row_length(run, model),
            vision_language.load_image_inputs(run, model),
        )

        def examples(part: Rows) -> Iterator[dict[str, Any]]:
            encoded = tokens.pieces(
                part.kept,
                lambda row: vision_language.add_images(image_inputs, row, shown.answers(row, tokenizer, ["completion"])),
                longest,
                False,
                part.dropped_by_encoding,
                part.too_long,
            )
            return (row | {"label": int(part.kept[row["row"]]["label"])} for row in encoded)

        dataset = prepare(run, rows, examples, tokenizer, *vision_language.encoding_settings(image_inputs, longest))
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        both_kinds(dataset["label"], rows.dropped + rows.dropped_by_encoding)
        order = array("q", range(len(dataset)))
        random.Random(f"{run.seed}/order").shuffle(order)
        dataset = _arranged(run, dataset.select(order), arguments, longest)
        answers_end(dataset, ["completion_ids"], tokenizer)
        sample = vision_language.sample_columns(
            image_inputs, dataset[0], dataset[0]["prompt_ids"] + dataset[0]["completion_ids"]
        )
        collator: Any = DataCollatorForUnpairedPreference(
            int(tokenizer.pad_token_id), longest, pad_to_multiple_of=run.arguments.get("pad_to_multiple_of")
        )
        return Batches(dataset, ImagePromptCollator(image_inputs, collator) if image_inputs else collator, sample)

    def train(self, run: Run) -> None:
        """Train the adapter, or every parameter, against what the parent says."""
        from transformers import set_seed

        from pipeline.training.alignment import without_dropout
        from pipeline.training.chat import open_parent, row_length
        from pipeline.training.loop import fit, hand_over
        from pipeline.training.unpaired import ThumbsTrainer

        arguments = self.arguments(run)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        model = vision_language.build_model(run, tokenizer, model)
        vision_language.set_trainable(model, run.options)
        without_dropout(run, model, arguments)
        arguments.max_length = row_length(run, model)
        made = self.batches(run, rows, tokenizer, model)
        balance(run, arguments, made.dataset["label"])
        trainer = ThumbsTrainer(
            run, model, arguments, data_collator=made.collator, train_dataset=made.dataset, processing_class=tokenizer,
            peft_config=vision_language.adapter(model, run.options, ()),
        )  # fmt: skip
        fit(run, trainer, rows)
        hand_over(
            run, trainer, tokenizer, made.sample, vision_language.save_function(vision_language.load_image_inputs(run, model))
        )


STAGE = KTO

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

"""A model and pairs of answers in, a reward model out: a score for a whole answer, higher for the one that was preferred.

    python stages/reward.py --config stages/profiles/feedback/reward.yaml --parent runs/feedback/sft \
--output runs/feedback/reward

The loss is −log σ(r(chosen) − r(rejected)) (Ouyang et al. 2022, eq. 1). A causal parent reads conversations by the chat
template; an encoder reads prompt and answer as its tokenizer's two texts.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import PARENT, Against, Stage
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.system.errors import UserError
from pipeline.training.chat import ChatOptions


class Reward(Stage):
    """Put a head of one output on the parent, train it on pairs, hand on a merged model."""

    title = "Reward model"
    about = "A reward model: a score for an answer, trained on pairs of answers (Ouyang et al. 2022)."
    reads = "preference"
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("causal", "masked", "embedder")}
    gives = "reward"
    library = "trl.RewardConfig"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 1e-4}
    primary = (Against("reward_accuracy", "even chances"),)

    Options = ChatOptions

    def note(self, options: Any) -> str:
        """Return what the model reads of a row."""
        return "Each side gets one score, and no token is a target; the chosen side's should be the higher one."

    def load_model(self, options: Any, folder: str) -> Any:
        """Return the model with its head."""
        from pipeline.models import reward_model

        return reward_model.load(folder)

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return pairs, each side whole."""
        from pipeline.data import sides, tokens
        from pipeline.models import checkpoint, reward_model
        from pipeline.training import guards, parents
        from pipeline.training.chat import row_length
        from pipeline.training.loop import prepare

        longest = int(min(row_length(run, model), reward_model.positions(model)))
        dataset = prepare(run, rows, lambda part: sides.examples(part, tokenizer, longest), tokenizer, longest)
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        trained = run.options.init != "random" and reward_model.is_causal(run.parent)
        if trained and (warning := parents.swapped(lambda: checkpoint.load(run.parent), dataset, tokenizer)):
            run.say(warning)
        dataset = dataset.add_column("length", [tokens.pair_length(row) for row in dataset])  # for sampling by length
        multiple = run.arguments.get("pad_to_multiple_of")
        collator = sides.SidesCollator(int(tokenizer.pad_token_id), multiple if isinstance(multiple, int) else 1)
        return Batches(dataset, collator, sides.whole(dataset[0], "chosen"))

    def train(self, run: Run) -> None:
        """Train the adapter and the head, or every parameter."""
        from transformers import set_seed
        from trl import RewardTrainer

        from pipeline.models import reward_model
        from pipeline.training.chat import turn_markers
        from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over
        from pipeline.training.strategies import heads
        from pipeline.training.trainer import StageTrainer

        class Sides(StageTrainer, RewardTrainer):
            """trl's trainer on pairs that went through our encoding already."""

            def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
                return dataset

        options: ChatOptions = run.options
        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
        if options.lora_dropout and arguments.disable_dropout:
            raise UserError(
                "lora_dropout: disable_dropout, which is on for a reward model, would turn it off; set one of the two"
            )
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = _opened(run)
        made = self.batches(run, rows, tokenizer, model)
        new_tokens = turn_markers(tokenizer, made.sample["input_ids"]) if options.chat_template else ()
        if adapter := options.adapter(model, new_tokens):
            adapter.task_type, adapter.modules_to_save = "SEQ_CLS", heads(model)
        trainer = Sides(
            model, arguments, data_collator=made.collator, train_dataset=made.dataset, processing_class=tokenizer, peft_config=adapter
        )  # fmt: skip
        fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, made.sample, reward_model.save)


def _opened(run: Run) -> tuple[Any, Any]:
    """Return tokenizer and model of the parent, with a new head, a template if it is causal, and padding that ends no answer."""
    from pipeline.models import reward_model, tokenization
    from pipeline.training import guards

    options: ChatOptions = run.options
    tokenizer = tokenization.load(run.parent)
    model = reward_model.begin(run.parent, options.init == "random")
    guards.fits_parent(model, tokenizer, run.arguments.get("max_length"))
    if reward_model.is_causal(run.parent):
        if added := tokenization.set_template(tokenizer, options.chat_template, run.parent):
            run.say(f"adds {', '.join(added)} to the vocabulary, which the chat template needs")
    elif options.chat_template:
        raise UserError("chat_template: an encoder reads prompt and answer as two texts and has no use for it; leave it out")
    else:
        tokenizer.chat_template = None
    if padding := reward_model.set_padding(tokenizer, model):
        run.say(f"pads with {padding}, since a reward is read at the last token that is no padding")
    guards.agree(tokenizer, model)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    return tokenizer, model


STAGE = Reward

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

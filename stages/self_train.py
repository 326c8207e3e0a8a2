"""A chat model, prompts and rewards in, a model that learned from the best of its own answers out: rejection sampling.

    python stages/self_train.py --config stages/profiles/feedback/self_train.yaml --parent runs/tiny/sft --output runs/feedback/self_train

Each round samples several answers to each prompt from the model as it is, keeps the best that reach `threshold` and
fine-tunes on them; the next round samples from what came of it. Dong et al. 2023 (RAFT), algorithm 1; Gulcehre et al. 2023
(ReST); Zelikman et al. 2022 (STaR), who begin each round from the parent again, which this does not. Rewards are written
as for reinforcement learning: rules (`rewards: {judge: 1.0}`), a trained model (`reward: NODE`), or both, weighted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import Against
from pipeline.data.batches import Batches, CausalCollator
from pipeline.data.recipe import Rows
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.training.answers import Sampled
from pipeline.training.rewarded import RewardedStage, RewardOptions


class SelfTraining(RewardedStage):
    """Sample, keep the best, learn from them, again and again, and hand on a merged model."""

    title = "Self-training"
    about = (
        "An aligned chat model: fine-tuned on the best of its own answers by a reward (rejection sampling, Dong et al. 2023)."
    )
    library = "transformers.TrainingArguments"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 2e-4}
    primary = (Against("win_rate", "even chances"), Against("sampled_reward", "parent"))

    @dataclass(frozen=True)
    class Options(RewardOptions, Sampled):
        """Those of every chat stage, the rewards, what is sampled, and what is kept in a round."""

        rounds: int = option(2, "how often it samples and learns; max_steps are those of all rounds", at_least=1)
        threshold: float = option(1.0, "least reward of an answer that is learned from")
        keep: int = option(1, "best answers to a prompt that are learned from, at most", at_least=1)
        prompts: int = option(0, "prompts that a round answers, at most, drawn anew for each; 0: all", at_least=0)

    def note(self, options: Any) -> str:
        """Return where the rows come from."""
        return "Each row is an answer of the parent that was kept in the first round; it is sampled again to be shown here."

    def arguments(self, run: Run) -> Any:
        """Return the library's arguments; UserError where the steps can't be shared out among the rounds."""
        from pipeline.training.loop import DEFAULTS, FORCED

        arguments, rounds = run.library_arguments(**DEFAULTS | run.arguments | FORCED), run.options.rounds
        if arguments.max_steps < rounds or arguments.max_steps % rounds:
            raise UserError(
                f"max_steps: say how many steps all rounds take, a multiple of rounds ({rounds}); found {arguments.max_steps}"
            )
        if "num_train_epochs" in run.arguments:
            raise UserError("num_train_epochs: how many answers a round keeps is not known beforehand; give max_steps alone")
        if arguments.train_sampling_strategy not in ("random", "sequential"):
            raise UserError(
                f"train_sampling_strategy: {arguments.train_sampling_strategy}: answers are read in an order drawn for each round; leave it out"
            )
        return arguments

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return what the rounds learn from, as many rows as the steps of a round read."""
        from pipeline.models.tokenization import render
        from pipeline.training import guards
        from pipeline.training.answers import fitting
        from pipeline.training.chat import open_parent, row_length
        from pipeline.training.loop import prepare, rows_of_a_step
        from pipeline.training.parents import known
        from pipeline.training.self_training import Rounds, in_order

        arguments = self.arguments(run)
        prompts, dropped = fitting(run, rows.kept, tokenizer, row_length(run, model))
        rows.dropped_by_encoding += dropped
        asked = (
            {"input_ids": render(tokenizer, prompt.row["prompt"], answer_next=True), "row": prompt.number} for prompt in prompts
        )
        encoded = prepare(run, rows, asked)
        guards.learns(encoded, rows.dropped + dropped)
        known(run, model, encoded, tokenizer)
        length = arguments.max_steps // run.options.rounds * rows_of_a_step(arguments)
        dataset = Rounds(run, prompts, tokenizer, length, lambda: open_parent(run).model)
        sample = {"input_ids": encoded[0]["input_ids"]}
        return Batches(dataset, CausalCollator(int(tokenizer.pad_token_id)), sample, in_order)

    def train(self, run: Run) -> None:
        """Train the adapter, or every parameter, for all rounds."""
        from peft import get_peft_model
        from transformers import set_seed

        from pipeline.models import checkpoint
        from pipeline.training import guards
        from pipeline.training.chat import open_parent
        from pipeline.training.loop import fit, hand_over
        from pipeline.training.self_training import RoundTrainer

        arguments = self.arguments(run)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        guards.ends(tokenizer)
        model.generation_config = checkpoint.generation(tokenizer)  # a new template brings an end token of its own
        made = self.batches(run, rows, tokenizer, model)
        if adapter := run.options.adapter():
            model = get_peft_model(model, adapter)
        trainer = RoundTrainer(model, arguments, made.collator, made.dataset, processing_class=tokenizer)
        fit(run, trainer, rows)
        run.record |= made.dataset.summary(model.num_parameters(), run.record["flops"])
        hand_over(run, trainer, tokenizer, made.sample)


STAGE = SelfTraining

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

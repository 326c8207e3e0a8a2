"""A chat model and pairs of answers in, a model that shuns the rejected ones out: unlikelihood training.

Welleck et al. 2020, eq. 4: −log(1 − p) of the tokens of the rejected answer, from the first one on in which it differs,
beside −log p of the tokens of the chosen one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import Against, Stage
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.system.config import option
from pipeline.training.chat import ChatOptions


@dataclass
class Loss:
    """Both parts of the loss."""

    weights: Mapping[str, float]

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the targets of each side."""
        from pipeline.models.logits import num_targets

        return {side: num_targets(batch[f"{side}_labels"][:, 1:]) for side in self.weights}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return −Σ log p of the chosen side, and −Σ log(1 − p) of the rejected one."""
        from pipeline.models.logits import IGNORED, token_nats

        found = {}
        for side in self.weights:
            labels = batch[f"{side}_labels"][:, 1:]
            logits = model(input_ids=batch[f"{side}_input_ids"], attention_mask=batch[f"{side}_attention_mask"]).logits
            nats = token_nats(logits[:, :-1], labels)
            if side == "rejected":
                likely = (-nats).exp().clamp(max=0.9999)
                nats = -(-likely).log1p().masked_fill(labels == IGNORED, 0.0)
            found[side] = nats.sum()
        return found


class Unlikelihood(Stage):
    """Make what was rejected unlikely."""

    title = "Shunning"
    about = "A chat model that shuns what was rejected: unlikelihood training on pairs of answers."
    reads = "preference"
    library = "transformers.TrainingArguments"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 1e-4}
    primary = (Against("finished", "parent"), Against("likelier", "parent"))

    @dataclass(frozen=True)
    class Options(ChatOptions):
        """Those of every chat stage, and the weight of its second part."""

        max_length: int = option(256, "tokens of the prompt with the longer answer", at_least=8)
        alpha: float = option(1.0, "weight of the rejected side", at_least=0.0)

    def note(self, options: Any) -> str:
        """Explain what is marked."""
        return "Of a rejected answer only what follows the first difference counts, and is made unlikely."

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return both sides of each pair with their targets."""
        from pipeline.data import batches, tokens
        from pipeline.training import guards
        from pipeline.training.loop import prepare

        def encoded(row: Row) -> tokens.Tokens:
            pair = tokens.encode_pair(row, tokenizer)
            prompt, chosen, rejected = pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]
            same = next((at for at, both in enumerate(zip(chosen, rejected, strict=False)) if both[0] != both[1]), 0)
            return {
                "chosen_input_ids": prompt + chosen,
                "chosen_labels": [tokens.IGNORED] * len(prompt) + chosen,
                "rejected_input_ids": prompt + rejected,
                "rejected_labels": [tokens.IGNORED] * (len(prompt) + same) + rejected[same:],
            }

        longest = run.options.max_length
        dataset = prepare(run, rows, tokens.pieces(rows.kept, encoded, longest, False, rows.dropped_by_encoding))
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        pad_id = int(tokenizer.pad_token_id)
        return Batches(dataset, lambda rows: batches.pad(rows, pad_id), {"input_ids": dataset[0]["chosen_input_ids"]})

    def train(self, run: Run) -> None:
        """Train the adapter, or every parameter."""
        from peft import get_peft_model
        from transformers import set_seed

        from pipeline.training.chat import open_parent
        from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over
        from pipeline.training.trainer import ObjectiveTrainer

        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        made = self.batches(run, rows, tokenizer, model)
        if adapter := run.options.adapter():
            model = get_peft_model(model, adapter)
        loss = Loss({"chosen": 1.0, "rejected": run.options.alpha})
        trainer = ObjectiveTrainer(loss, model, arguments, made.collator, made.dataset, processing_class=tokenizer)
        fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, made.sample)


STAGE = Unlikelihood

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

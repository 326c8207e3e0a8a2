"""Training on pairs of answers by trl's losses: prompts are read once, answers alone scored, the parent asked once."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from trl import DPOTrainer

from pipeline.data.tokens import IGNORED
from pipeline.training import references, scoring
from pipeline.training.alignment import AlignmentTrainer
from pipeline.training.loop import passes

if TYPE_CHECKING:
    from pipeline.chain.run import Run

SIDES = ("chosen", "rejected")
_FIRST_PAIRS = 4  # by which it is measured whether a model reads joined pairs as it reads them apart


class PreferenceTrainer(AlignmentTrainer, DPOTrainer):
    """trl's trainer on pairs that went through our chat template already.

    A run that reads every pair at least once keeps the parent's log-probabilities; a shorter one asks the parent in each
    step. `by_row`: losses that are means over pairs; the others are means over tokens.
    """

    model: Any

    def __init__(self, run: Run, model: Any, arguments: Any, by_row: set[str], **named: Any) -> None:
        self.run, self.by_row, self.joins = run, by_row, False
        whole = passes(arguments, len(named["train_dataset"])) >= 1  # then one pass before it saves more than it costs
        keeps = not arguments.sync_ref_model and bool(run.arguments.get("precompute_ref_log_probs", whole))
        arguments.precompute_ref_log_probs = keeps
        self.parent = references.identity(model) if keeps else ""
        copied = None if keeps or named["peft_config"] else copy.deepcopy(model)
        super().__init__(model, copied, arguments, **named)
        self.say = run.say
        if not keeps:
            self._score_answers_alone(self.train_dataset)
            run.say("reference: asked in each step")

    def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: object) -> Any:
        """Return pairs with the parent's log-probability of both sides, as trl asks for it when it is built."""
        self._score_answers_alone(dataset)
        precision = [str(self.accelerator.mixed_precision), self.model.config._attn_implementation, self.joins]
        depends = {"parent": self.parent, "precision": precision}
        columns = [f"{side}_ids" for side in SIDES]
        kept = references.kept(self.run, dataset, columns, depends, self.args.device.type, self._parent_scores)
        weight = 1.0 if self.ld_alpha is None else self.ld_alpha
        pairs = [(values, min(map(len, values))) for values in zip(*(kept[column] for column in columns), strict=True)]
        for number, side in enumerate(SIDES):  # what lies beyond the shorter side counts by ld_alpha
            sums = [found[number][:both].sum() + weight * found[number][both:].sum() for found, both in pairs]
            dataset = dataset.add_column(f"ref_{side}_logps", np.array(sums, np.float32))
        return dataset

    def _score_answers_alone(self, dataset: Any) -> None:
        """Let model and reference score answers alone, of joined pairs where that gives what they have apart."""
        causal = self.accelerator.unwrap_model(self.model)
        causal = causal.get_base_model() if hasattr(causal, "peft_config") else causal
        for model in (causal, self.ref_model):
            if model is not None:
                scoring.score_answers_alone(model, lambda: self.joins)
        first = [dataset[row] for row in range(min(_FIRST_PAIRS, len(dataset)))]
        if scoring.sees_all(causal) and not self.aux_loss_enabled:
            apart = self._log_probs(first)
            self.joins = True
            self.joins = scoring.agree(apart, lambda: self._log_probs(first))

    def _log_probs(self, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        """Return the log-probabilities of the model as it is, (2 · pairs, length - 1), 0 outside of the answers."""
        batch = self._prepare_inputs(self.data_collator(rows))
        mask = batch.pop("completion_mask")
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            labels = batch["input_ids"].masked_fill(mask == 0, IGNORED)
            found: torch.Tensor = self.model(**batch, labels=labels, fused_lm_head=True).log_probs
        self.model.train(training)
        return found

    def _parent_scores(self, rows: Sequence[dict[str, Any]]) -> references.Values:
        """Return the parent's log-probability of every token of the rows' answers."""
        off = self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else contextlib.nullcontext()
        with off, self.accelerator.autocast():
            found = self._log_probs(rows).float().cpu().numpy()
        values: references.Values = {}
        for number, side in enumerate(SIDES):
            ends = [(len(row["prompt_ids"]) - 1, len(row[f"{side}_ids"])) for row in rows]
            half = found[number * len(rows) :]
            values[f"{side}_ids"] = [half[index, start : start + size] for index, (start, size) in enumerate(ends)]
        return values

    def items(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the pairs of a batch, and the tokens of their chosen sides."""
        chosen = batch["completion_mask"].chunk(2)[0][:, 1:]
        return {"rows": len(chosen), "liked": len(chosen), "tokens": chosen.sum()}

    def compute_loss(self, model: Any, inputs: Any, *more: Any, num_items_in_batch: Any = None) -> Any:
        """Return trl's loss, whose parts are each an exact average over all batches of the step."""
        factors, given = self.factors(inputs, num_items_in_batch), self.loss_weights
        named = zip(self.loss_types, given, strict=True)
        self.loss_weights = [weight * factors["rows" if name in self.by_row else "tokens"] for name, weight in named]
        try:
            return super().compute_loss(model, inputs, *more)
        finally:
            self.loss_weights = given

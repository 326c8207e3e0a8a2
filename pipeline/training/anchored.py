"""Training with a reference by trl's trainers: the parent's log-probabilities are computed once, and answers alone are scored."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipeline.data.batches import pad
from pipeline.data.image_inputs import PIXEL_COLUMN
from pipeline.data.tokens import answered
from pipeline.training import references, scoring
from pipeline.training.alignment import AlignmentTrainer
from pipeline.training.loop import passes

if TYPE_CHECKING:
    from pipeline.chain.run import Run

_FIRST_ROWS = 4  # by which it is measured whether a model reads joined answers as it reads them apart


class AnchoredTrainer(AlignmentTrainer):
    """An AlignmentTrainer on rows that went through our chat template already, beside a trainer of trl with a reference.

    A run that reads every row at least once keeps the parent's log-probabilities; a shorter one asks the parent in each
    step.
    """

    model: Any
    ref_model: Any  # of trl
    aux_loss_enabled: bool  # of trl
    columns: tuple[str, ...]  # of the answers that follow a row's prompt
    together = False  # whether two answers to a prompt are one row of a forward pass

    def __init__(self, run: Run, model: Any, arguments: Any, **named: Any) -> None:
        self.run, self.joins, self.pad_id = run, False, int(named["processing_class"].pad_token_id)
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

    def kept(self, dataset: Any) -> references.Values:
        """Return the parent's log-probability of every token of the answers."""
        self._score_answers_alone(dataset)
        precision = [str(self.accelerator.mixed_precision), self.model.config._attn_implementation, self.joins]
        depends = {"parent": self.parent, "precision": precision}
        return references.kept(self.run, dataset, self.columns, depends, self.args.device.type, self._parent_scores)

    def _score_answers_alone(self, dataset: Any) -> None:
        """Let model and reference score answers alone, two of them joined where that gives what they have apart."""
        causal = self.accelerator.unwrap_model(self.model)
        causal = causal.get_base_model() if hasattr(causal, "peft_config") else causal
        for model in (causal, self.ref_model):
            if model is not None:
                scoring.score_answers_alone(model, lambda: self.joins and self.together)
        first = [dataset[row] for row in range(min(_FIRST_ROWS, len(dataset)))]
        if len(self.columns) == 2 and scoring.sees_all(causal) and not self.aux_loss_enabled:
            apart = self._log_probs(first)
            self.joins = True
            self.joins = scoring.agree(apart, lambda: self._log_probs(first))

    def _log_probs(self, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        """Return the log-probabilities of the model as it is, (columns · rows, length - 1), 0 outside of the answers."""
        answers = [answered(row["prompt_ids"], row[column]) for column in self.columns for row in rows]
        batch = self._prepare_inputs(pad(answers, self.pad_id) | self._pictures(rows))
        training, together = self.model.training, self.together
        self.model.eval()
        self.together = True
        with torch.no_grad():
            found: torch.Tensor = self.model(**batch, fused_lm_head=True).log_probs
        self.model.train(training)
        self.together = together
        return found

    def _pictures(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the pictures of rows as often as each has answers; nothing where the model reads none."""
        collator = getattr(self.data_collator, "collator", self.data_collator)
        image_inputs = getattr(collator, "image_inputs", None)
        return image_inputs.columns([row[PIXEL_COLUMN] for row in rows] * len(self.columns)) if image_inputs else {}

    def _parent_scores(self, rows: Sequence[dict[str, Any]]) -> references.Values:
        """Return the parent's log-probability of every token of the rows' answers."""
        off = self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else contextlib.nullcontext()
        with off, self.accelerator.autocast():
            found = self._log_probs(rows).float().cpu().numpy()
        values: references.Values = {}
        for number, column in enumerate(self.columns):
            ends = [(len(row["prompt_ids"]) - 1, len(row[column])) for row in rows]
            part = found[number * len(rows) :]
            values[column] = [part[index, start : start + size] for index, (start, size) in enumerate(ends)]
        return values

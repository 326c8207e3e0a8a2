"""Training on pairs by trl's losses: prompts are read once, answers alone scored, reference log-probabilities computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from trl import DPOTrainer

from pipeline.training.anchored import AnchoredTrainer

if TYPE_CHECKING:
    from pipeline.chain.run import Run

SIDES = ("chosen", "rejected")


class PreferenceTrainer(AnchoredTrainer, DPOTrainer):
    """trl's trainer of pairs; `by_row`: losses that are means over pairs; the others are means over tokens."""

    columns = tuple(f"{side}_ids" for side in SIDES)
    together = True

    def __init__(self, run: Run, model: Any, arguments: Any, by_row: set[str], **named: Any) -> None:
        self.by_row = by_row
        super().__init__(run, model, arguments, **named)

    def _precompute_ref_logps(self, dataset: Any, *_: object) -> Any:
        """Return pairs with the parent's log-probability of both sides, as trl asks for it when it is built."""
        kept = self.kept(dataset)
        weight = 1.0 if self.ld_alpha is None else self.ld_alpha
        pairs = [(values, min(map(len, values))) for values in zip(*(kept[column] for column in self.columns), strict=True)]
        for number, side in enumerate(SIDES):  # what lies beyond the shorter side counts by ld_alpha
            sums = [found[number][:both].sum() + weight * found[number][both:].sum() for found, both in pairs]
            dataset = dataset.add_column(f"ref_{side}_logps", np.array(sums, np.float32))
        return dataset

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

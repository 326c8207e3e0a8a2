"""Training on rated answers, thumbs up or down, by trl's losses: answers alone scored, reference log-probabilities computed once.

Each row may have another row's answer beside its own, from which the KL to the parent is estimated; the parent's
log-probability of that one is kept, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from trl import KTOTrainer

from pipeline.training.anchored import AnchoredTrainer

if TYPE_CHECKING:
    from pipeline.chain.run import Run

ANSWER, OTHER = "completion_ids", "KL_completion_ids"
_REFERENCE = {ANSWER: "ref_logps", OTHER: "ref_KL_logps"}  # as trl calls what the parent says of them


class ThumbsTrainer(AnchoredTrainer, KTOTrainer):
    """trl's trainer of rated answers."""

    def __init__(self, run: Run, model: Any, arguments: Any, **named: Any) -> None:
        self.columns = tuple(name for name in _REFERENCE if name in named["train_dataset"].column_names)
        super().__init__(run, model, arguments, **named)

    def _precompute_ref_logps(self, dataset: Any, *_: object) -> Any:
        """Return rows with the parent's log-probability of their answers, as trl asks for it when it is built."""
        kept = self.kept(dataset)
        for column in self.columns:
            dataset = dataset.add_column(_REFERENCE[column], np.array([found.sum() for found in kept[column]], np.float32))
        return dataset

    def items(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rows of a batch, those with a thumb up, and the tokens of their answers."""
        up, mask = batch["label"] > 0, batch["completion_mask"][:, 1:]
        return {"rows": len(up), "liked": up.sum(), "tokens": mask[up].sum()}

    def compute_loss(self, model: Any, inputs: Any, *more: Any, num_items_in_batch: Any = None) -> Any:
        """Return trl's loss, an exact average over all rows of the step."""
        factor, given = self.factors(inputs, num_items_in_batch)["rows"], (self.desirable_weight, self.undesirable_weight)
        self.desirable_weight, self.undesirable_weight = (weight * factor for weight in given)
        try:
            return super().compute_loss(model, inputs, *more)
        finally:
            self.desirable_weight, self.undesirable_weight = given

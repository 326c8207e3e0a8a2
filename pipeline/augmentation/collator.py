"""Examples → batches of varied examples; what is drawn depends on (seed, stage, epoch, example) and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.augmentation import Augmentation, ordinary
from pipeline.system import hashes

EXAMPLE = "example"  # the column that numbers the examples


@dataclass
class Varying:
    """Vary each example anew in each epoch, then make the batch; wherever a run is resumed, it makes the same ones."""

    collator: Callable[[list[Any]], Mapping[str, Any]]
    augmentation: Augmentation
    tokenizer: Any
    seed: int
    stage: str
    epoch: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the batch that the collator makes of the varied examples."""
        return self.collator([self._varied(row) for row in rows])

    def _varied(self, row: Mapping[str, Any]) -> dict[str, Any]:
        drawn = int(hashes.digest([self.seed, self.stage])[:15], 16)
        rng = np.random.default_rng([drawn, self.epoch, row[EXAMPLE]])
        found = {column: value for column, value in row.items() if column != EXAMPLE}
        for column in sorted(found):
            if column.endswith("_ids") and column != "token_type_ids":
                ids = np.array(row[column], dtype=np.int64)
                found[column] = self.augmentation.vary(ids, ordinary(ids, self.tokenizer), self.tokenizer, rng).tolist()
        return found

"""Held-out figures of any self-supervised objective, against a unigram of its targets and against chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import objectives
from pipeline.chain import manifest
from pipeline.data import recipe as recipes
from pipeline.data.shapes import Row
from pipeline.data.tokens import IGNORED
from pipeline.system.hardware import device
from pipeline.objectives import Example, Objective, Text
from pipeline.objectives._batches import EXAMPLE, HELD_OUT_BATCH
from pipeline.models.tokenizer import load as load_tokenizer

_TRAINING_ROWS = 1000  # whose targets make the unigram, and whose words make the negatives


class Judge:
    """A finished pretraining with what it needs to be judged: objective, tokenizer, model."""

    def __init__(self, folder: Path) -> None:
        record = manifest.read(folder)
        assert record is not None
        self.config: Mapping[str, Any] = record["config"]
        self.seed = int(record["seed"])
        self.objective: Objective = objectives.load(self.config["objective"], self.config["objective_options"])
        self.tokenizer = load_tokenizer(str(folder))
        self.model = self.objective.load_model(str(folder)).to(device()).eval()

    def examples(self, rows: Iterable[Row]) -> list[Example]:
        """Return what the objective makes of rows, numbered."""
        text = Text(
            list(rows), self.tokenizer, self.config["max_length"], self.config["language"], self.seed, Counter(), Counter()
        )
        return [example | {EXAMPLE: number} for number, example in enumerate(self.objective.examples(text))]

    def batches(self, examples: list[Example], collator: Any, marks: bool = False) -> Iterable[dict[str, Any]]:
        """Yield batches, with or without marks among the targets; a rest too small to hold negatives is left out."""
        rows = [{key: value for key, value in example.items() if key != "row"} for example in examples]
        for start in range(0, len(rows), HELD_OUT_BATCH):
            if len(rows) - start >= HELD_OUT_BATCH or self.objective.accumulates:
                made = self.objective.judged(collator(rows[start : start + HELD_OUT_BATCH]))
                batch = {key: value.to(device()) for key, value in made.items()}
                yield batch if marks else self._without_marks(batch)

    def _without_marks(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take special tokens out of the targets; what a decoder reads stays as it is."""
        import torch

        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if "labels" in batch and shift:
            special = torch.tensor(self.tokenizer.all_special_ids, device=batch["labels"].device)
            batch["decoder_input_ids"] = shift(labels=batch["labels"])
            batch["labels"] = batch["labels"].masked_fill(torch.isin(batch["labels"], special), IGNORED)
        return batch


def scores(folder: Path, training: recipes.Rows, held_out: list[Row]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Return metric → what is summed and what it is divided by, of the stage and of those that it is held against.

    `pretrain`; `unigram`, which knows how frequent words are; `untrained`, the same model with random
    weights; `chance`. Sentinels and ends of text are no targets here: their order is nearly given. The unigram
    has counted them, since it knows no more than the model that a target is none of them.
    """
    import datasets
    import torch

    judge = Judge(folder)
    step = max(1, len(training.kept) // _TRAINING_ROWS)
    known = judge.examples(training.kept[::step])
    lists = {key for key, value in known[0].items() if isinstance(value, list)}
    collator = judge.objective.collator(
        judge.tokenizer, datasets.Dataset.from_list([{key: row[key] for key in lists} for row in known]), judge.seed
    )
    frequencies = _frequencies(judge.batches(known, collator, marks=True), len(judge.tokenizer))
    torch.manual_seed(judge.seed)
    untrained = judge.objective.fresh(judge.model).to(device()).eval()
    found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    with torch.no_grad():
        for batch in judge.batches(judge.examples(held_out), collator):
            for name, model in (("untrained", untrained), ("pretrain", judge.model)):
                torch.manual_seed(judge.seed)  # of the generator's samples, whatever ran before
                measured = judge.objective.scores(model, batch)  # in the end, the trained one's
                for metric, pair in measured.items():
                    _extend(found, name, metric, *pair)
            losses = [metric for metric in measured if metric.endswith("loss")]
            if "labels" in batch and losses:
                _extend(found, "unigram", losses[0], *_under(frequencies, batch["labels"].cpu().numpy()))
            for metric, pair in judge.objective.by_frequency(collator, batch).items():
                _extend(found, "unigram", metric, *pair)
            for metric, share in judge.objective.chance.items():
                weights = measured[metric][1]
                _extend(found, "chance", metric, [share * weight for weight in weights], weights)
    return found


def _extend(found: dict[str, Any], name: str, metric: str, values: list[float], weights: list[float]) -> None:
    before = found.setdefault(name, {}).setdefault(metric, ([], []))
    before[0].extend(values)
    before[1].extend(weights)


def _frequencies(batches: Iterable[Mapping[str, Any]], size: int) -> np.ndarray:
    """Return -log p of each token among the targets, one added to each count; (vocabulary,) in nats."""
    counts = np.ones(size)
    for batch in batches:
        if "labels" not in batch:  # nor in any other: there is no token to tell
            break
        labels = batch["labels"].cpu().numpy()
        counts += np.bincount(labels[labels != IGNORED], minlength=size)
    return math.log(counts.sum()) - np.log(counts)


def _under(frequencies: np.ndarray, labels: np.ndarray) -> tuple[list[float], list[float]]:
    asked = labels != IGNORED
    return (np.where(asked, frequencies[np.maximum(labels, 0)], 0).sum(1)).tolist(), asked.sum(1).astype(float).tolist()

"""Evaluates models that are not causal on held-out text by their own objective: against a unigram, random weights and chance.

A causal model is evaluated by the loss of whole documents instead (pipeline/evaluation/metrics/text_loss.py).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.tokens import IGNORED
from pipeline.data.types import Row
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement
from pipeline.evaluation.subject import StageModel, Subject
from pipeline.objectives import Example, Objective, Scores, Text
from pipeline.objectives.collator import EXAMPLE, HELD_OUT_BATCH
from pipeline.system.errors import UserError
from pipeline.system.hardware import device

UNIGRAM, UNTRAINED, CHANCE = "unigram", "untrained", "chance"  # baselines
_NEAREST = 5  # of what a row finds, that are kept
_TRAINING_ROWS = 1000  # whose targets make the unigram, and whose words make the negatives


class ObjectiveEvaluator(Evaluator):
    """Measures what an objective trains for, on text that the model was not trained on."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.metrics = objective, objective.metrics
        self.gives = (objective.family,)

    def _comparable(self, model: StageModel, subject: Subject) -> bool:
        same = model.family == subject.node.family
        return same and self.objective.same_inputs(model.tokenizer, subject.node.tokenizer)

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield the objective's metrics of the node, of a parent and controls of its family, and of the baselines."""
        if not subject.rows:
            return
        others = {model.label: model.where for model in subject.compared[1:] if self._comparable(model, subject)}
        own = subject.node
        held_out = HeldOut(self.objective, own.label, own.where, subject.record["config"], subject.seed)
        for label, where in list(others.items()):
            try:
                held_out.add(label, where)
            except UserError as error:
                subject.skipped[f"figures of {label} by this objective: {error.faults[0]}"] += 1
        found = held_out.scores(subject.training(), subject.rows)
        if own.label not in found:
            subject.skipped[
                f"its {len(subject.rows):,} held-out rows fill no batch of {HELD_OUT_BATCH}, among which one is looked for"
            ] += 1
            return
        subject.neighbours += held_out.neighbours(subject.numbered, subject.settings.samples)
        order = [own.label, *others]
        for label in [*order, *(name for name in found if name not in order)]:
            for metric, (values, weights) in found[label].items():
                yield Measurement(label, metric, share(values, weights))


def evaluators(options: Any) -> list[Evaluator]:
    """Return what evaluates a model that is trained with these options (of a stage, with the objective under `chosen`)."""
    objective: Objective = options.chosen
    return [] if objective.family == "causal" else [ObjectiveEvaluator(objective)]


EVALUATORS = evaluators


class HeldOut:
    """A pretrained model with what its evaluation on held-out text needs, and other models on the same batches."""

    def __init__(self, objective: Objective, label: str, folder: str, config: Mapping[str, Any], seed: int) -> None:
        self.objective, self.label, self.config, self.seed = objective, label, config, seed
        self.tokenizer = objective.processor(folder)
        self.model = objective.load_model(folder).to(device()).eval()
        self.others: dict[str, Any] = {}

    def add(self, label: str, folder: str) -> None:
        """Add a model that reads the same batches; UserError if the objective can't load it."""
        self.others[label] = self.objective.load_model(folder).to(device()).eval()

    def examples(self, rows: Iterable[Row]) -> list[Example]:
        """Return the objective's examples of rows, numbered."""
        text = Text(
            list(rows), self.tokenizer, self.config["max_length"], self.config["language"], self.seed, Counter(), Counter()
        )
        return [example | {EXAMPLE: number} for number, example in enumerate(self.objective.examples(text))]

    def batches(self, examples: list[Example], collator: Any, special: bool = False) -> Iterable[dict[str, Any]]:
        """Yield batches, with or without special tokens among the targets.

        A rest that is too small to hold negatives is left out.
        """
        rows = [{key: value for key, value in example.items() if key != "row"} for example in examples]
        size = max(1, len(rows)) if self.objective.together else HELD_OUT_BATCH
        for start in range(0, len(rows), size):
            if len(rows) - start >= size or self.objective.accumulates:
                made = self.objective.scorable_targets(collator(rows[start : start + size]))
                batch = {key: value.to(device()) for key, value in made.items()}
                yield batch if special else self._without_special(batch)

    def _without_special(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take special tokens out of the targets; what a decoder reads stays as it is."""
        import torch

        shift = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if "labels" in batch and shift:
            special = torch.tensor(self.tokenizer.all_special_ids, device=batch["labels"].device)
            batch["decoder_input_ids"] = shift(labels=batch["labels"])
            batch["labels"] = batch["labels"].masked_fill(torch.isin(batch["labels"], special), IGNORED)
        return batch

    def scores(self, training: Sequence[Row], held_out: Sequence[Row]) -> dict[str, Scores]:
        """Return the scores of the model, of the others and of the baselines, row by row, under their labels.

        The objective's own rivals are left out where a unigram or chance is no worse. `unigram` knows how frequent words are; `untrained` is the same model with random weights. Sentinels and ends of
        text are no targets here, since their order is nearly given. The unigram has counted them, since it knows no more
        than the model that a target is none of them.
        """
        import datasets
        import torch

        known = self.examples(training[:: max(1, len(training) // _TRAINING_ROWS)])
        lists = {key for key, value in known[0].items() if isinstance(value, list)}
        dataset = datasets.Dataset.from_list([{key: row[key] for key in lists} for row in known])
        collator = self.objective.held_out_collator(self.tokenizer, dataset, self.seed)
        size = self.objective.vocabulary(self.tokenizer)
        frequencies = _frequencies(self.batches(known, collator, special=True), size) if size else np.empty(0)
        rivals = self.objective.rivals(known, size)
        torch.manual_seed(self.seed)
        untrained = self.objective.fresh(self.model).to(device()).eval()
        models = {UNTRAINED: untrained, **self.others, self.label: self.model}
        found: dict[str, Scores] = {}
        with torch.no_grad():
            for batch in self.batches(self.examples(held_out), collator):
                for label, model in models.items():
                    torch.manual_seed(self.seed)  # of the generator's samples, whatever ran before
                    own = self.objective.scores(model, batch)  # in the end, the trained one's
                    for metric, pair in own.items():
                        _extend(found, label, metric, *pair)
                self._baselines(found, collator, batch, own, frequencies)
                for name, rival in rivals.items():
                    for metric, pair in rival(batch).items():
                        _extend(found, name, metric, *pair)
        better = {metric.name: metric.better for metric in self.objective.metrics}
        for name in rivals:
            found[name] = {
                metric: pair
                for metric, pair in found.get(name, {}).items()
                if all(_beats(pair, other[metric], better[metric]) for other in _weaker(found) if metric in other)
            }
        order = [self.label, *self.others, *rivals, UNIGRAM, UNTRAINED, CHANCE]
        return {label: found[label] for label in order if found.get(label)}

    def neighbours(self, held_out: Mapping[int, Row], count: int) -> list[dict[str, Any]]:
        """Return what a few rows, drawn by seed, find among all, where the objective looks for rows; each row by its number.

        `held_out`: number → row. `rank` is that of a row's own counterpart among the `among` candidates.
        """
        import torch

        if not self.objective.together:
            return []
        numbers, examples = list(held_out), self.examples(held_out.values())
        rows = [numbers[example["row"]] for example in examples]
        asked = sorted(random.Random(self.seed).sample(range(len(rows)), min(count, len(rows))))
        (batch,) = self.batches(examples, self.objective.held_out_collator(self.tokenizer, examples, self.seed))
        with torch.no_grad():
            found = self.objective.neighbours(self.model, batch, asked)
        return [
            {"asked": asks, "found": wanted, "row": rows[one], "nearest": [rows[at] for at in nearest[:_NEAREST]],
             "rank": nearest.index(one) + 1, "among": len(nearest)}
            for (asks, wanted), each in found.items() for one, nearest in zip(asked, each, strict=True)
        ]  # fmt: skip

    def _baselines(
        self, found: dict[str, Scores], collator: Any, batch: Mapping[str, Any], own: Scores, frequencies: np.ndarray
    ) -> None:
        """Add the scores of the unigram and of chance on a batch."""
        losses = [metric for metric in own if metric.endswith("loss")]
        if "labels" in batch and losses:
            _extend(found, UNIGRAM, losses[0], *_under(frequencies, batch["labels"].cpu().numpy()))
        for metric, pair in self.objective.unigram_scores(collator, batch).items():
            _extend(found, UNIGRAM, metric, *pair)
        for metric, pair in self.objective.chance(own).items():
            _extend(found, CHANCE, metric, *pair)


def _weaker(found: Mapping[str, Scores]) -> list[Scores]:
    """Return the scores of the baselines that a rival has to beat to be one."""
    return [found[name] for name in (UNIGRAM, CHANCE) if name in found]


def _beats(one: tuple[list[float], list[float]], other: tuple[list[float], list[float]], better: str) -> bool:
    """Say whether the sum of one's scores, over the same weights, is better than that of another."""
    return sum(one[0]) > sum(other[0]) if better == "more" else sum(one[0]) < sum(other[0])


def _extend(found: dict[str, Scores], label: str, metric: str, values: list[float], weights: list[float]) -> None:
    before = found.setdefault(label, {}).setdefault(metric, ([], []))
    before[0].extend(values)
    before[1].extend(weights)


def _frequencies(batches: Iterable[Mapping[str, Any]], size: int) -> np.ndarray:
    """Return −log p of each token among the targets, one added to each count; (vocabulary,) in nats."""
    counts = np.ones(size)
    for batch in batches:
        if "labels" not in batch:  # nor in any other: there are no tokens to count
            break
        labels = batch["labels"].cpu().numpy()
        counts += np.bincount(labels[labels != IGNORED], minlength=size)
    return np.asarray(math.log(counts.sum()) - np.log(counts))


def _under(frequencies: np.ndarray, labels: np.ndarray) -> tuple[list[float], list[float]]:
    targets = labels != IGNORED
    return (np.where(targets, frequencies[np.maximum(labels, 0)], 0).sum(1)).tolist(), targets.sum(1).astype(float).tolist()

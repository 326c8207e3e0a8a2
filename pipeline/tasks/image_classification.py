"""Classification of a picture by a vision transformer (Dosovitskiy et al. 2021, section 3.1), the head on its first token.

With `strategy: frozen` that is a linear probe. `labelled` says how few labels it is given: 1% and 10%, as Chen et al. 2020
(section 6) have them, tell what pretraining saves.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.data import pictures
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.models import loading, processors, vision
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.tasks import Example, Prediction, _rivals
from pipeline.tasks.classification import Classification, probabilities, weights

PIXELS = "logistic regression on raw pixels"
_BATCH = 64
_STRENGTHS = (0.001, 0.01, 0.1)  # of logistic regression
_MOST = 5000  # training rows that it is fitted to, drawn at random


@dataclass(frozen=True)
class ImageClassification(Classification):
    """Predict the label of a picture."""

    reads = "images"
    family = "image_classifier"
    accepts: ClassVar[tuple[str, ...]] = ("vision", "masked_vision", "dual_encoder", "image_classifier")
    auto = "AutoModelForImageClassification"
    keeps = "pixels"
    unread: ClassVar[tuple[str, ...]] = ("max_length",)

    labelled: float = option(1.0, "share of the training rows of each label that it is given", at_least=0.0001, at_most=1.0)

    def labels(self, rows: Iterable[Row]) -> list[str]:
        """Return the labels in alphabetical order; UserError where there is only one, or rows have none."""
        read = [{key: row[key] for key in ("label",) if key in row} for row in rows]
        if unlabelled := sum(not row for row in read):
            raise UserError(f"{unlabelled:,} of {len(read):,} pictures have no label, which their folder or a table gives them")
        return super().labels(read)

    def longest(self, max_length: int) -> int:
        """Return 0: pictures are no tokens, and prompts are cut to what their tokenizer says."""
        return 0

    def processor(self, folder: str) -> Any:
        """Return the image processor of a folder or hub id."""
        return processors.image_processor(folder)

    def load_model(self, parent: str, labels: Sequence[str] = (), random: bool = False, rows: Sequence[Row] = ()) -> Any:
        """Return the parent's encoder in fp32 under a head, which is new unless the parent has one for these labels."""
        from transformers import AutoConfig, AutoModelForImageClassification, ViTForImageClassification

        try:
            settings = AutoConfig.from_pretrained(parent, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--parent {parent}: has no configuration ({' '.join(str(error).split())[:200]})") from None
        had = [settings.id2label[number] for number in sorted(settings.id2label or {})]
        known = (settings.architectures or [""])[0] == ViTForImageClassification.__name__
        if known and not random and (not labels or sorted(had) == sorted(labels)):
            return loading.from_pretrained(AutoModelForImageClassification, parent)
        body = vision.encoder(parent, pooler=False)
        settings = body.config
        settings.id2label = dict(enumerate(labels))
        settings.label2id = {name: number for number, name in enumerate(labels)}
        settings.problem_type = self.problem_type
        model = ViTForImageClassification(settings)
        if not random:
            model.vit.load_state_dict(body.state_dict())
        return model

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield pictures at the size that the model reads, (side, side, 3) uint8 as bytes, with the number of their label."""
        numbers = {name: number for number, name in enumerate(labels)}
        for number, row in enumerate(rows.kept):
            yield {"pixels": _read(row, tokenizer).tobytes(), "label": numbers[row["label"]], "row": number}

    def collator(self, tokenizer: Any, dataset: Any) -> Labelled:
        """Return what batches pictures, each with the weight of its label."""
        return Labelled(tokenizer, weights(dataset["label"], self.balance))

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return the most likely label of each picture, with the probability of every label."""
        model.eval()

        def said(pixels: Any) -> list[Prediction]:
            return probabilities(model, model(pixel_values=pixels.to(model.device)).logits.float().cpu())

        return self.asked(rows, tokenizer, said)

    def asked(self, rows: Rows, processor: Any, said: Callable[[Any], list[Prediction]]) -> list[Prediction]:
        """Return what is said of the pictures of rows, a few at a time, (pictures, 3, side, side)."""
        import torch

        found: list[Prediction] = []
        for start in range(0, len(rows.kept), _BATCH):
            pixels = np.stack([_read(row, processor) for row in rows.kept[start : start + _BATCH]])
            with torch.no_grad():
                found += said(vision.normalised(pixels, processor))
        return found

    def rivals(self, training: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, list[Prediction]]]:
        """Yield a logistic regression on the pixels of the pictures, at 32 by 32."""
        from sklearn.linear_model import LogisticRegression

        names = sorted({row["label"] for row in training})

        def inputs(known: Sequence[Row], asked: Sequence[Row]) -> tuple[Any, Any]:
            one, two = (np.stack([_levels(row) for row in part]) for part in (known, asked))
            return one - one.mean(0), two - one.mean(0)

        def fit(strength: float, given: Any, known: Sequence[Row], asked: Any) -> np.ndarray:
            targets = [names.index(row["label"]) for row in known]
            likely = np.zeros((len(asked), len(names)))
            if len(set(targets)) > 1:
                model = LogisticRegression(C=strength, max_iter=500, class_weight="balanced").fit(given, targets)
                likely[:, model.classes_] = model.predict_proba(asked)
            else:
                likely[:, targets[0]] = 1.0
            return likely

        def say(likely: np.ndarray) -> list[Prediction]:
            return [{"label": names[number]} for number in likely.argmax(-1)]

        yield (
            PIXELS,
            _rivals.linear(self, training, rows, fit, say, features=inputs, strengths=_STRENGTHS, most=_MOST, small=_small),
        )

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write a plain checkpoint that transformers loads, with its image processor."""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def sample(self, dataset: Any, tokenizer: Any) -> Mapping[str, Any]:
        """Return the picture of the first example as a model reads it."""
        pixels = vision.stacked([dataset[0]["pixels"]], vision.side(tokenizer))
        return {vision.PIXELS: vision.normalised(pixels, tokenizer)[0].tolist()}


@dataclass
class Labelled:
    """Batch pictures with the numbers of their labels, and the weight of each label."""

    processor: Any
    weights: np.ndarray  # of each label

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return (pictures, 3, side, side) `pixel_values`; `label` and `weight`, (pictures,)."""
        import torch

        pixels = vision.stacked((row["pixels"] for row in rows), vision.side(self.processor))
        label = torch.tensor([row["label"] for row in rows])
        weight = torch.from_numpy(self.weights).float()[label]
        return {vision.PIXELS: vision.normalised(pixels, self.processor), "label": label, "weight": weight}

    def thumbnails(self, batch: Mapping[str, Any]) -> list[list[str]]:
        """Return of each row of a batch its picture as the model is shown it."""
        return [[one] for one in pictures.thumbnails(vision.shown(batch[vision.PIXELS], self.processor))]


def _read(row: Row, processor: Any) -> np.ndarray:
    return pictures.pixels(pictures.shown(row["image"]), vision.side(processor), int(processor.resample))


def _small(row: Row) -> Row:
    """Return a row with its picture at 32 by 32 in place of its file, so that thousands of them fit into memory."""
    if "small" in row or "bytes" not in row["image"]:
        return row
    small = pictures.pixels(pictures.shown(row["image"]), 32, 2)
    kept = {key: value for key, value in row.items() if key != "image"}
    return kept | {"image": {"hash": row["image"].get("hash", "")}, "small": base64.b64encode(small.tobytes()).decode("ascii")}


def _levels(row: Row) -> np.ndarray:
    return np.frombuffer(base64.b64decode(_small(row)["small"]), np.uint8).astype(float) / 255


TASK = ImageClassification

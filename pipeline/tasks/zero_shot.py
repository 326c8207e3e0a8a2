"""Classification of a picture by prompts (Radford et al. 2021, section 3.1): the class whose text lies nearest to it.

The text of a class is the mean of the vectors of its prompts, such as `an emoji of {}` with the class in place of the braces. A
model that lays pictures beside texts can be asked so as it is; where it is trained on labels, its towers learn -log p(class | picture).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.data.batches import IDS, pad
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.metrics import Metric
from pipeline.models import processors, vision
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.tasks import ACCURACY, MACRO_F1, Example, Prediction
from pipeline.tasks.classification import probabilities
from pipeline.tasks.image_classification import ImageClassification

RANDOM = "a class at random"
_PLACE = "{}"


@dataclass(frozen=True)
class ZeroShot(ImageClassification):
    """Say of a picture the class whose prompts lie nearest."""

    family = "dual_encoder"
    accepts: ClassVar[tuple[str, ...]] = ("dual_encoder",)
    auto = "AutoModel"
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, MACRO_F1)
    primary = "accuracy"

    prompts: list[str] = option([_PLACE], "texts of a class, with its name in place of the braces")  # noqa: RUF009
    names: dict[str, str] = option({}, "label: what it is called in a prompt, where that is not the label itself")  # noqa: RUF009

    def labels(self, rows: Iterable[Row]) -> list[str]:
        """Return the labels in alphabetical order; UserError where there is only one, or prompts and names don't fit them."""
        found = super().labels(rows)
        faults = [
            f"task_options: prompts: {one!r} has no {_PLACE}, where the class belongs"
            for one in self.prompts
            if _PLACE not in one
        ]
        faults += ["task_options: prompts: give one at least"] * (not self.prompts)
        faults += [f"task_options: names: {one!r} is no label of these rows" for one in self.names if one not in found]
        if faults:
            raise UserError(*faults)
        return found

    def processor(self, folder: str) -> Any:
        """Return the image processor and the tokenizer of a folder or hub id."""
        return processors.pair(folder)

    def load_model(self, parent: str, labels: Sequence[str] = (), random: bool = False, rows: Sequence[Row] = ()) -> Any:
        """Return both towers in fp32 with the prompts of all labels at hand; with `random` at random weights of the same sizes."""
        model = vision.dual(parent)
        if labels:
            model.config.id2label = dict(enumerate(labels))
            model.config.label2id = {name: number for number, name in enumerate(labels)}
        model = type(model)(model.config) if random else model
        model.prompts = self._encoded(list(model.config.id2label.values()), self.processor(parent).tokenizer)
        return model

    def _encoded(self, labels: Sequence[str], tokenizer: Any) -> dict[str, Any]:
        """Return the ids of the prompts of each label in turn, (labels · prompts, length), and their mask."""
        called = [self.names.get(label, label) for label in labels]
        texts = [prompt.replace(_PLACE, name) for name in called for prompt in self.prompts]
        how = {"truncation": True, "max_length": tokenizer.model_max_length, "split_special_tokens": True}
        return pad([{IDS: list(tokenizer(text, **how)[IDS])} for text in texts], int(tokenizer.pad_token_id))

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield pictures at the size that the model reads, with the number of their label."""
        yield from super().examples(rows, tokenizer.image_processor, max_length, labels)

    def collator(self, tokenizer: Any, dataset: Any) -> Any:
        """Return what batches pictures, each with the weight of its label."""
        return super().collator(tokenizer.image_processor, dataset)

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ w log p(class | picture)."""
        import torch

        nats = torch.nn.functional.cross_entropy(self.logits(model, batch), batch["label"], reduction="none")
        return {"loss": (nats * batch["weight"]).sum()}

    def logits(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return the scaled cosines of pictures and classes; (pictures, classes) float32."""
        import torch

        network = getattr(model, "module", model)
        asked = {key: value.to(batch[vision.PIXELS].device) for key, value in network.prompts.items()}
        found = model(pixel_values=batch[vision.PIXELS], **asked)
        classes = found.text_embeds.float().unflatten(0, (-1, len(self.prompts))).mean(1)
        return found.image_embeds.float() @ torch.nn.functional.normalize(classes, dim=-1).T * vision.scale(network)

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return the nearest class of each picture, with the probability of every class."""
        return self.asked(rows, tokenizer.image_processor, lambda pixels: probabilities(model, self._said(model, pixels)))

    def _said(self, model: Any, pixels: Any) -> Any:
        return self.logits(model, {vision.PIXELS: pixels.to(model.device)}).cpu()

    def rivals(self, training: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, list[Prediction]]]:
        """Yield a class drawn at random for each picture, and a logistic regression on pixels, which has all labels."""
        names, rng = sorted({row["label"] for row in training}), np.random.default_rng(0)
        yield RANDOM, [{"label": names[number]} for number in rng.integers(0, len(names), len(rows))]
        yield from super().rivals(training, rows)

    def sample(self, dataset: Any, tokenizer: Any) -> Mapping[str, Any]:
        """Return the picture of the first example as a model reads it, beside a text of one token."""
        return {**super().sample(dataset, tokenizer.image_processor), IDS: [int(tokenizer.tokenizer.cls_token_id)]}


TASK = ZeroShot

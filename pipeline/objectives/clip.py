"""Contrastive learning of pictures with texts (CLIP, Radford et al. 2021, figure 3).

A picture tower and a text tower each give one vector. Of all texts of a batch, the one that belongs to a picture should be the
nearest, and of all pictures the one that belongs to a text: the loss is the mean of both -log softmax of cosines, times a scale
that is learned and is 100 at most. What has an equal text belongs to it as well, and is left out of the sum. A tower is new, or
that of a parent (`image_tower`, `text_tower`), and may be frozen: then its pooler and the projection above it learn, and nothing
below them (with a frozen picture tower, Zhai et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.chain.stage import Against
from pipeline.data.batches import IDS, pad
from pipeline.data.negatives import gathered
from pipeline.evaluation.metrics import Metric
from pipeline.models import processors, vision
from pipeline.models.build import build, load
from pipeline.objectives import Example, Scores, Text
from pipeline.objectives._views import Drawing, Viewing
from pipeline.objectives._vision import VisionObjective
from pipeline.system.config import option
from pipeline.system.errors import UserError

IMAGE_TOWER, TEXT_TOWER = "image_tower", "text_tower"  # roles of parents
_WAYS = {"image_to_text": "pictures whose own text", "text_to_image": "texts whose own picture"}
_AT = (1, 5, 10)
_SCALE = 1 / 0.07  # that cosines are multiplied by at first
_PART = 64  # held-out rows that are embedded at once
_EQUAL = 1e-6  # a difference of cosines by rounding


@dataclass(frozen=True)
class CLIP(VisionObjective):
    """Lay a picture and what is said of it beside each other, apart from all others of the batch."""

    reads = "image_text"
    family = "dual_encoder"
    accepts: ClassVar[tuple[str, ...]] = ("dual_encoder",)
    towers: ClassVar[Mapping[str, tuple[str, ...]]] = {
        IMAGE_TOWER: ("vision", "masked_vision", "dual_encoder"),
        TEXT_TOWER: ("masked", "embedder"),
    }
    architectures: ClassVar[tuple[str, ...]] = ("bert", "roberta", "albert")  # of a new text tower; pictures are read by a ViT
    unread: ClassVar[tuple[str, ...]] = ("language",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        *(
            Metric(f"{way}_at_{at}", f"share of the {what} is among the {at} nearest, of those of all held-out rows", "share", "more")
            for way, what in _WAYS.items() for at in _AT
        ),
        Metric("pair_loss", "mean −log p of which text is a picture's, and which picture a text's, among all held-out rows, in nats",
               "nats", "less"),
    )  # fmt: skip
    judged_by = (Against("text_to_image_at_5", "untrained"), Against("text_to_image_at_5", "chance"))
    note = "Beside these texts the batch holds their pictures; the loss is over which belong together."
    accumulates = False  # a batch's pairs are each other's negatives, so a part of it would be an easier task
    together = True

    projection: int = option(128, "dimensions of the space in which both lie, of a new model", at_least=1)
    freeze_images: bool = option(False, "leave the picture tower as its parent has it, but for its pooler")
    freeze_texts: bool = option(False, "leave the text tower as its parent has it, but for its pooler")
    area: float = option(0.6, "share of a picture that is shown while it trains, at least", at_least=0.01, at_most=1.0)
    mirror: float = option(0.0, "share of pictures that are mirrored; texts may name left and right", at_least=0.0, at_most=1.0)

    def processor(self, folder: str) -> Any:
        """Return the image processor and the tokenizer of a folder or hub id."""
        return processors.pair(folder)

    def new_processor(self, learn: Callable[[], Any]) -> Any:
        """Return an image processor for pictures of the size, and a tokenizer that is learned from the texts."""
        return processors.joined(vision.new_processor(self.image_size), learn())

    def vocabulary(self, processor: Any) -> int:
        """Return the tokens of the texts."""
        return len(processor.tokenizer)

    def sized(self, processor: Any, length: int) -> str:
        """Return in words what is read at once."""
        tokens = f"texts of up to {length} tokens, vocabulary {self.vocabulary(processor):,}"
        return f"{super().sized(processor.image_processor, length)}, {tokens}"

    def begin(self, parents: Mapping[str, str], learn: Callable[[], Any], architecture: str, **sizes: int) -> tuple[Any, Any]:
        """Return processor and model with new towers or those of parents; UserError where a new one would be frozen, or sizes differ."""
        unread = {"freeze_images": IMAGE_TOWER, "freeze_texts": TEXT_TOWER}
        if faults := [
            f"objective_options: {name}: a new tower would stay at random; give it a parent as {role}, or leave {name} out"
            for name, role in unread.items() if getattr(self, name) and role not in parents
        ]:  # fmt: skip
            raise UserError(*faults)
        seen, read = parents.get(IMAGE_TOWER, ""), parents.get(TEXT_TOWER, "")
        images = processors.image_processor(seen, IMAGE_TOWER) if seen else vision.new_processor(self.image_size)
        processor = processors.joined(images, processors.load(read, TEXT_TOWER) if read else learn())
        pictures = vision.encoder(seen, role=IMAGE_TOWER) if seen else self._pictures(sizes)
        texts = _text_tower(read) if read else self._texts(architecture, processor, sizes)
        self.fits(pictures.config)
        return processor, self._freeze(_joined(pictures, texts, self.projection))

    def _pictures(self, sizes: Mapping[str, int]) -> Any:
        from transformers import ViTConfig, ViTModel

        return ViTModel(ViTConfig(**vision.sizes(sizes, self.image_size, self.patch_size)))

    def _texts(self, architecture: str, processor: Any, sizes: Mapping[str, int]) -> Any:
        self.known(architecture)
        return build("AutoModel", architecture, processor.tokenizer, sizes)

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return two towers with random weights."""
        return _joined(self._pictures(sizes), self._texts(architecture, tokenizer, sizes), self.projection)

    def load_model(self, parent: str) -> Any:
        """Return both towers of a folder or hub id; UserError where it has others."""
        model = vision.dual(parent)
        self.fits(model.config.vision_config)
        return self._freeze(model)

    def fresh(self, model: Any) -> Any:
        """Return a model of the same sizes with random weights."""
        return _spread(type(model)(model.config))

    def _freeze(self, model: Any) -> Any:
        """Leave frozen towers as they are, save for what is above their first token."""
        for tower, frozen in ((model.vision_model, self.freeze_images), (model.text_model, self.freeze_texts)):
            for name, parameter in tower.named_parameters():
                parameter.requires_grad_(not frozen or name.startswith("pooler."))
        return model

    def examples(self, text: Text) -> Iterator[Example]:
        """Yield pictures at the size that the model reads, (side, side, 3) uint8 as bytes, with the ids of their texts."""
        tokenizer, longest = text.tokenizer.tokenizer, text.max_length
        how = {"return_attention_mask": False, "return_token_type_ids": False, "split_special_tokens": True}
        for example in super().examples(self._pictured(text)):
            said = text.rows[example["row"]]["text"]
            ids = list(tokenizer(said, **how)[IDS])
            if len(ids) > longest:
                text.truncated[f"ends of texts of more than {longest} tokens"] += 1
                ids = list(tokenizer(said, truncation=True, max_length=longest, **how)[IDS])
            yield example | {IDS: ids}

    @staticmethod
    def _pictured(text: Text) -> Text:
        return Text(
            text.rows, text.tokenizer.image_processor, text.max_length, text.language, text.seed, text.dropped, text.truncated
        )

    def collator(self, tokenizer: Any, dataset: Any, seed: int) -> Pairing:
        """Return what batches a part of each picture with its text."""
        return Pairing(tokenizer, Viewing(tokenizer.image_processor, seed, Drawing(self.area, self.mirror, 0.0)))

    def held_out_collator(self, tokenizer: Any, dataset: Any, seed: int) -> Pairing:
        """Return what batches whole pictures with their texts."""
        return Pairing(tokenizer)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of pairs."""
        return {"loss": len(batch[IDS])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mean of -Σ log p(text | picture) and -Σ log p(picture | text), over the pairs of the batch, on all processes."""
        found, scale = model(**batch), vision.scale(model)
        texts, pictures = found.text_embeds.float(), found.image_embeds.float()
        (every_text, first), (every_picture, _) = gathered(texts), gathered(pictures)
        every_id, _ = gathered(batch[IDS].masked_fill(batch["attention_mask"] == 0, -1), -1)
        same = equal(every_id[first : first + len(texts)], every_id)
        both = [_nats(one @ every.T * scale, same, first) for one, every in ((texts, every_picture), (pictures, every_text))]
        return {"loss": sum(both).sum() / 2}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return of each row whether its text and its picture find each other among those of all rows, and its loss."""
        pictures, texts = embedded(model, batch)
        cosines, same = texts @ pictures.T, equal(batch[IDS], batch[IDS])
        scale = vision.scale(model)
        return recalls(cosines, same) | {"pair_loss": _each(nats(cosines * scale, same).tolist())}

    def neighbours(self, model: Any, batch: Mapping[str, Any], asked: Sequence[int]) -> dict[tuple[str, str], list[list[int]]]:
        """Return which pictures are nearest to the texts of a few rows, and which texts to their pictures."""
        pictures, texts = embedded(model, batch)
        cosines, same = texts @ pictures.T, equal(batch[IDS], batch[IDS])
        ways = {("text", "image"): cosines, ("image", "text"): cosines.T}
        return {way: [nearest(side[row], same[row], row) for row in asked] for way, side in ways.items()}

    def chance(self, own: Scores) -> Scores:
        """Return how often one of so many rows is found by chance, and the loss of guessing among them."""
        rows = len(own["pair_loss"][0])
        found = {f"{way}_at_{at}": _each([min(1.0, at / rows)] * rows) for way in _WAYS for at in _AT}
        return found | {"pair_loss": _each([math.log(rows)] * rows)}


@dataclass
class Pairing:
    """Batch views of pictures, or whole ones, with the ids of their texts, padded: `pixel_values`, `input_ids` and `attention_mask`."""

    processor: Any
    viewing: Viewing | None = None  # None: whole pictures
    epoch: int = 0

    def __call__(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return (pairs, 3, side, side) pictures and (pairs, length) ids."""
        texts = pad([{IDS: row[IDS]} for row in rows], int(self.processor.tokenizer.pad_token_id))
        if self.viewing:
            self.viewing.epoch = self.epoch
            return self.viewing(rows) | texts
        images = self.processor.image_processor
        pixels = vision.stacked((row["pixels"] for row in rows), vision.side(images))
        return {vision.PIXELS: vision.normalised(pixels, images)} | texts

    def thumbnails(self, batch: Mapping[str, Any]) -> list[list[str]]:
        """Return of each pair of a training batch its picture as the model is shown it."""
        return self.viewing.thumbnails(batch) if self.viewing else []


def _text_tower(parent: str) -> Any:
    """Return the encoder of a folder or hub id, without dropout; UserError where it has no pooler, which the library projects."""
    model = load("AutoModel", parent, 0.0)
    if getattr(model, "pooler", None) is None:
        raise UserError(
            f"--{TEXT_TOWER} {parent}: a {model.config.model_type} has no pooler above its first token, which the library's dual "
            "encoder projects; take a bert, roberta or albert"
        )
    return model


def _joined(pictures: Any, texts: Any, projection: int) -> Any:
    """Return a dual encoder of two towers, with a projection above each."""
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        pictures.config, texts.config, projection_dim=projection, logit_scale_init_value=math.log(_SCALE)
    )
    return _spread(VisionTextDualEncoderModel(config, pictures, texts))


def _spread(model: Any) -> Any:
    """Draw new projections as wide as CLIP's own code does, by the width of what they read; the library's 0.02 is for wide models."""
    for layer in (model.visual_projection, model.text_projection):
        layer.weight.data.normal_(std=layer.in_features**-0.5)
    return model


def embedded(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the vectors of the pictures and of the texts of a batch, each scaled to length 1; (rows, dimensions) float32."""
    import torch

    found = []
    for start in range(0, len(batch[IDS]), _PART):
        part = model(**{key: value[start : start + _PART] for key, value in batch.items()})
        found.append((part.image_embeds.float(), part.text_embeds.float()))
    pictures, texts = zip(*found, strict=True)
    return torch.cat(pictures), torch.cat(texts)


def equal(ids: Any, others: Any) -> Any:
    """Return which texts are the same, (rows, others) bool, by their padded ids."""
    return (ids.unsqueeze(1) == others.unsqueeze(0)).all(-1)


def nats(logits: Any, same: Any) -> Any:
    """Return the mean of -log p(own picture | text) and -log p(own text | picture) of each row; `logits`: (texts, pictures).

    Other rows of the same text are no candidates.
    """
    return (_nats(logits, same) + _nats(logits.T, same)) / 2


def _nats(logits: Any, same: Any, first: int = 0) -> Any:
    """Return -log p(own column | row) of each row, (rows, columns); the first one's own column is `first`, the next ones' follow."""
    import torch

    own = torch.arange(first, first + len(logits), device=logits.device)
    logits = logits.masked_fill(same.scatter(1, own.unsqueeze(1), False), float("-inf"))
    return torch.nn.functional.cross_entropy(logits, own, reduction="none")


def recalls(cosines: Any, same: Any) -> Scores:
    """Return of each row whether it is among the nearest of its counterpart, either way; `cosines`: (texts, pictures).

    An equal cosine counts as nearer; other rows of the same text are no candidates.
    """
    found: Scores = {}
    for way, side in zip(_WAYS, (cosines.T, cosines), strict=True):
        own = side.diagonal().unsqueeze(1)
        before = ((side >= own - _EQUAL) & ~same).sum(1)
        found |= {f"{way}_at_{at}": _each((before < at).float().tolist()) for at in _AT}
    return found


def nearest(cosines: Any, same: Any, own: int) -> list[int]:
    """Return the candidates of a row, the nearest first, as `recalls` ranks them; `cosines`, `same`: (candidates,)."""
    ranked = cosines.clone()
    ranked[own] -= _EQUAL
    found = ranked.argsort(descending=True, stable=True).tolist()
    return [at for at in found if at == own or not same[at]]


def _each(values: list[float]) -> tuple[list[float], list[float]]:
    return values, [1.0] * len(values)


OBJECTIVE = CLIP

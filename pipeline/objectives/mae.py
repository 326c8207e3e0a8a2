"""Masked autoencoding of pictures (MAE, He et al. 2022, section 3).

75% of the patches of a picture are hidden. The encoder reads the others alone; a small decoder gives back the pixels of the
hidden ones, each patch scaled to mean 0 and variance 1. The loss is the mean squared error over hidden patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.chain.stage import Against
from pipeline.evaluation.metrics import Metric
from pipeline.models import vision
from pipeline.objectives import Example, Scores
from pipeline.objectives._views import Drawing, Viewing
from pipeline.objectives._vision import VisionObjective
from pipeline.system.config import option
from pipeline.system.errors import UserError


@dataclass(frozen=True)
class MaskedAutoencoder(VisionObjective):
    """Hide most patches of a picture, give back their pixels."""

    family = "masked_vision"
    accepts: ClassVar[tuple[str, ...]] = ("masked_vision",)
    architectures: ClassVar[tuple[str, ...]] = ("vit_mae",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "patch_error",
            "mean squared error of the pixels of hidden patches, each patch scaled to mean 0 and variance 1",
            "score",
            "less",
        ),
    )
    judged_by = (Against("patch_error", "nearest patches"), Against("patch_error", "flat patches"))

    mask_share: float = option(0.75, "share of the patches that is hidden", at_least=0.01, at_most=0.99)
    decoder_layers: int = option(2, "depth of the decoder, of a new model", at_least=1)
    area: float = option(0.2, "share of a picture that is shown, at least", at_least=0.01, at_most=1.0)
    mirror: float = option(0.5, "share of pictures that are mirrored", at_least=0.0, at_most=1.0)

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return an encoder and a decoder of half its width, with random weights; UserError where nothing would be hidden or left."""
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        self.known(architecture)
        found = vision.sizes(sizes, self.image_size, self.patch_size)
        width = sizes["hidden_size"] // 2
        if width % sizes["num_attention_heads"] or width % 4:
            raise UserError(
                f"hidden_size: half of {sizes['hidden_size']}, the decoder's width, is no multiple of 4 and of num_attention_heads "
                f"{sizes['num_attention_heads']}"
            )
        decoder: dict[str, Any] = {
            "decoder_hidden_size": width, "decoder_num_hidden_layers": self.decoder_layers,
            "decoder_num_attention_heads": sizes["num_attention_heads"], "decoder_intermediate_size": 4 * width,
        }  # fmt: skip
        config = ViTMAEConfig(**found, **decoder, norm_pix_loss=True)
        self._hide(config)
        return _placed(ViTMAEForPreTraining(config))

    def load_model(self, parent: str) -> Any:
        """Return the masked autoencoder of a folder or hub id; UserError where it is none, or of other sizes than asked."""
        from pipeline.models.build import load

        model = load("AutoModelForPreTraining", parent)
        self.known(model.config.model_type)
        self.fits(model.config)
        model.config.norm_pix_loss = True
        self._hide(model.config)
        return model

    def _hide(self, config: Any) -> None:
        """Let a model hide the share; UserError where that is no patch, or every one."""
        config.mask_ratio = self.mask_share
        patches = (config.image_size // config.patch_size) ** 2
        if not 0 < int(patches * (1 - self.mask_share)) < patches:
            raise UserError(
                f"objective_options: mask_share: {self.mask_share} of {patches} patches leaves none to read, or hides none"
            )

    def fresh(self, model: Any) -> Any:
        """Return a model of the same sizes with random weights."""
        return _placed(type(model)(model.config))

    def collator(self, tokenizer: Any, dataset: Any, seed: int) -> Hiding:
        """Return what batches a part of each picture, and the noise by which its patches are hidden."""
        return Hiding(tokenizer, seed, Drawing(self.area, self.mirror, 0.0), noise=self.patch_size, share=self.mask_share)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of hidden patches."""
        pictures, patches = batch["noise"].shape
        return {"loss": pictures * (patches - int(patches * (1 - self.mask_share)))}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the squared error, the mean over a patch, summed over hidden patches."""
        found = model(pixel_values=batch[vision.PIXELS], noise=batch["noise"])
        return {"loss": found.loss * found.mask.sum()}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return the squared error of each picture's hidden patches."""
        found = model(pixel_values=batch[vision.PIXELS], noise=batch["noise"])
        return {"patch_error": _error(found.logits.float(), targets(batch), found.mask)}

    def rivals(self, known: Sequence[Example], size: int) -> dict[str, Callable[[Mapping[str, Any]], Scores]]:
        """Return what two ways of guessing reach: that patches are flat, and that they repeat the nearest one that is shown."""

        def flat(batch: Mapping[str, Any]) -> Scores:
            wanted = targets(batch)
            return {"patch_error": _error(wanted * 0, wanted, hidden(batch, self.mask_share))}

        def nearest(batch: Mapping[str, Any]) -> Scores:
            wanted, mask = targets(batch), hidden(batch, self.mask_share)
            return {"patch_error": _error(repeated(wanted, mask), wanted, mask)}

        return {"flat patches": flat, "nearest patches": nearest}


@dataclass
class Hiding(Viewing):
    """Batch a view of each picture, of whose patches the model hides a share by their noise."""

    share: float = 0.75

    def thumbnails(self, batch: Mapping[str, Any]) -> list[list[str]]:
        """Return of each picture of a batch its view, and what of it the encoder reads: hidden patches are grey."""
        pixels = batch[vision.PIXELS]
        side = round(batch["noise"].shape[1] ** 0.5)
        mask = hidden(batch, self.share).reshape(-1, 1, side, side)
        mask = mask.repeat_interleave(self.noise, 2).repeat_interleave(self.noise, 3)
        grey = vision.scaled(pixels.new_full((1, 3, 1, 1), 0.5), self.processor)
        both = [super(Hiding, self).thumbnails({vision.PIXELS: one}) for one in (pixels, pixels * (1 - mask) + grey * mask)]
        return [[*whole, *read] for whole, read in zip(*both, strict=True)]


def _placed(model: Any) -> Any:
    """Return a new model whose patches know where they are.

    transformers 5.23 leaves the positions of a new model at zero: it fills them only while the patches' projection is not
    drawn yet, which is drawn before, and sets those of the decoder to zero once more.
    """
    embeddings = model.vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False
    embeddings.initialize_weights()
    model.decoder.initialize_weights(embeddings.patch_embeddings.num_patches)
    return model


def hidden(batch: Mapping[str, Any], share: float) -> Any:
    """Return 1 for patches that the model hides, as it does by the order of their noise, else 0; (pictures, patches)."""
    order = batch["noise"].argsort(1).argsort(1)
    return (order >= int(order.shape[1] * (1 - share))).float()


def targets(batch: Mapping[str, Any]) -> Any:
    """Return the pixels of patches, scaled as the model's loss scales them; (pictures, patches, 3 · size · size)."""
    pixels = batch[vision.PIXELS]
    count, colours, high, wide = pixels.shape
    size = round(high / batch["noise"].shape[1] ** 0.5)
    cut = pixels.reshape(count, colours, high // size, size, wide // size, size)
    cut = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return (cut - cut.mean(-1, keepdim=True)) / (cut.var(-1, keepdim=True) + 1e-6) ** 0.5


def repeated(patches: Any, mask: Any) -> Any:
    """Return patches of which the hidden ones are those that are shown nearest to them."""
    import torch

    side = round(patches.shape[1] ** 0.5)
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2).float()
    far = torch.cdist(places, places).to(patches.device) + 1e6 * mask.unsqueeze(1)  # (pictures, patch, shown one)
    return patches.gather(1, far.argmin(-1, keepdim=True).expand_as(patches))


def _error(found: Any, wanted: Any, mask: Any) -> tuple[list[float], list[float]]:
    each = ((found - wanted) ** 2).mean(-1)
    return (each * mask).sum(1).tolist(), mask.sum(1).tolist()


OBJECTIVE = MaskedAutoencoder

"""Vision transformers (ViT, Dosovitskiy et al. 2021) of the library: built by sizes, or the encoder of a parent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.models import loading
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

PIXELS = "pixel_values"  # what the library calls pictures in a batch
DUAL = "vision-text-dual-encoder"  # what the library calls a model that lays pictures beside texts
_LARGEST = 100.0  # that cosines are multiplied by
_WIDER = 4  # feed-forward layers over hidden size
_SAME = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "image_size", "patch_size", "num_channels", "qkv_bias",
)  # fmt: skip  # of an encoder, whatever it was trained by


def sizes(given: Mapping[str, int], image_size: int, patch_size: int) -> dict[str, Any]:
    """Return the sizes of an encoder for square pictures that are cut into square patches; UserError where they don't fit."""
    faults = []
    if image_size % patch_size:
        faults.append(f"image_size: {image_size} is not a multiple of patch_size {patch_size}")
    if given["hidden_size"] % given["num_attention_heads"]:
        faults.append(
            f"hidden_size: {given['hidden_size']} is not a multiple of num_attention_heads {given['num_attention_heads']}"
        )
    if given["hidden_size"] % 4:
        faults.append(f"hidden_size: {given['hidden_size']} is not a multiple of 4, as positions in two dimensions need it")
    if faults:
        raise UserError(*faults)
    named: dict[str, Any] = {name: given[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    return named | {"intermediate_size": _WIDER * given["hidden_size"], "image_size": image_size, "patch_size": patch_size}


def encoder(parent: str, pooler: bool = True, role: str = "parent") -> Any:
    """Return the ViT of a folder or hub id in fp32; UserError for another model.

    It is its own, that within a masked autoencoder, or the tower of a dual encoder that reads pictures.

    `pooler`: whether it has one, which begins at random where the parent has none.
    """
    from transformers import AutoModel, ViTConfig, ViTModel

    try:
        config = loading.configuration(parent, role)
        tower = getattr(config, "vision_config", config)
        if tower.model_type not in ("vit", "vit_mae") or config.model_type not in (tower.model_type, DUAL):
            raise UserError(
                f"--{role} {parent}: is a {config.model_type}; pictures are read by vit, by the encoder of vit_mae and by the vit "
                f"of a {DUAL}"
            )
        found = loading.from_pretrained(AutoModel, parent, role=role)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--{role} {parent}: no vision transformer can be loaded ({' '.join(str(error).split())[:200]})"
        ) from None
    model = ViTModel(ViTConfig(**{name: getattr(tower, name) for name in _SAME}), add_pooling_layer=pooler)
    told = model.load_state_dict(getattr(found, "vision_model", found).state_dict(), strict=False)
    if lost := [name for name in told.missing_keys if not name.startswith("pooler.")]:
        raise UserError(f"--{role} {parent}: its weights lack {', '.join(lost[:3])}")
    return model.eval()


def layers_before(config: Any, layer: int) -> int:
    """Return how many layers of an encoder the hidden states of a layer have passed, counted from either end; UserError where there is none."""
    depth = int(config.num_hidden_layers)
    if not -depth <= layer <= depth:
        raise UserError(f"vision_feature_layer: {layer}: the tower has {depth} layers; 0 are its embeddings, -1 is the last")
    return layer if layer >= 0 else depth + 1 + layer


def dual(parent: str) -> Any:
    """Return both towers of a folder or hub id in fp32; UserError for another model."""
    from pipeline.models.build import load

    model = load("AutoModel", parent)
    if model.config.model_type != DUAL:
        raise UserError(f"--parent {parent}: is a {model.config.model_type}; pictures and texts are read by a {DUAL}")
    return model


def scale(model: Any) -> Any:
    """Return what a dual encoder multiplies cosines by: learned, and 100 at most (Radford et al. 2021, section 2.5)."""
    return getattr(model, "module", model).logit_scale.clamp(max=math.log(_LARGEST)).exp()


def new_processor(image_size: int) -> Any:
    """Return an image processor for pictures of a size: both sides are scaled to it, and levels to between -1 and 1."""
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": image_size, "width": image_size})


def side(processor: Any) -> int:
    """Return the height and width that a processor scales pictures to; UserError where it cuts them or they differ."""
    size = processor.size
    if getattr(processor, "do_center_crop", False) or not size.height or size.height != size.width:
        raise UserError(
            f"--parent: its image processor scales to {dict(size)}; one that scales both sides alike, and cuts nothing, is read"
        )
    return int(size.height)


def stacked(pixels: Iterable[bytes], side: int) -> np.ndarray:
    """Return the pictures of examples, each (side, side, 3) uint8 as bytes; (pictures, side, side, 3)."""
    import numpy as np

    return np.stack([np.frombuffer(one, np.uint8).reshape(side, side, 3) for one in pixels])


def levels(pixels: np.ndarray) -> torch.Tensor:
    """Return pictures, (pictures, side, side, 3) uint8, as levels between 0 and 1; (pictures, 3, side, side) float32."""
    import torch

    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def normalised(pixels: np.ndarray, processor: Any) -> torch.Tensor:
    """Return pictures as a processor hands them to its model; `pixels`: (pictures, side, side, 3) uint8 of the right size.

    (pictures, 3, side, side) float32.
    """
    return scaled(levels(pixels), processor)


def scaled(levels: torch.Tensor, processor: Any) -> torch.Tensor:
    """Return levels between 0 and 1, (pictures, 3, side, side), by the mean and deviation of a processor."""
    import torch

    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (levels - mean) / deviation if processor.do_normalize else levels


def shown(pixels: torch.Tensor, processor: Any) -> np.ndarray:
    """Return pictures of a batch as they look, (pictures, side, side, 3) uint8: what `scaled` did to their levels, undone."""
    import torch

    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    levels = pixels.cpu() * deviation + mean if processor.do_normalize else pixels.cpu()
    found: np.ndarray = (levels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return found


def patches(config: Any, batch: Mapping[str, Any]) -> int:
    """Return how many patches the pictures of a batch have for a model of a configuration."""
    size = getattr(config, "vision_config", config).patch_size
    columns = [value for key, value in batch.items() if key.endswith(PIXELS)]
    return sum(int(one.shape[0] * (one.shape[-2] // size) * (one.shape[-1] // size)) for one in columns)


def pictured(batch: Mapping[str, Any]) -> bool:
    """Say whether a batch holds pictures, in one column or several."""
    return any(key.endswith(PIXELS) for key in batch)


def operations(model: Any, batch: Mapping[str, Any]) -> int:
    """Estimate the operations of a step on pictures: six for each parameter and patch, of texts beside them for each token."""
    if not hasattr(model, "text_model"):
        return int(6 * patches(model.config, batch) * model.num_parameters(exclude_embeddings=True))
    of_pictures, of_texts = (one.num_parameters(exclude_embeddings=True) for one in (model.vision_model, model.text_model))
    return int(
        6
        * (patches(model.config, batch) * of_pictures + (batch["input_ids"].numel() if "input_ids" in batch else 0) * of_texts)
    )

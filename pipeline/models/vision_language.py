"""Models that read pictures in conversations, whichever of the library's classes they are: their parts, tokens, processor and cost.

What is a class's own is in `llava` and `idefics`; `_CLASSES` is the one place that tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.models import idefics, llava, parts, vision
from pipeline.system.errors import UserError

FAMILY = "vision_language"


class Class(NamedTuple):
    """What the library calls the parts of a vision-language model, and what is made for it."""

    tower: str
    connector: tuple[str, ...]  # what lies between tower and language model
    language: str
    patch_modules: tuple[str, ...]  # that are asked for each patch of a picture
    num_tokens: Callable[[Any], int]  # of a picture
    processor: Callable[[Any, Any, Any], Any]
    model_class: Callable[[], Any]


_CLASSES = {
    "llava": Class(
        "vision_tower", ("multi_modal_projector",), "language_model", ("vision_tower",),
        llava.num_tokens, llava.processor, llava.model_class,
    ),
    idefics.TYPE: Class(
        "vision_model", idefics.NEW, "layers", ("vision_model.encoder", "perceiver_resampler"),
        lambda _: 1, idefics.processor, idefics.model_class,
    ),
}  # fmt: skip
_PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "probe8315"}]}]
# Put before a template that reads texts alone: parts become one text, with the token in the place of a picture.
_PARTS = (Path(__file__).parent / "templates" / "parts.jinja").read_text(encoding="utf-8")


def reads_images(model: Any) -> bool:
    """Say whether a model, or its configuration, is a vision-language model."""
    return getattr(model, "config", model).model_type in _CLASSES


def uses_cross_attention(model: Any) -> bool:
    """Say whether a vision-language model, or its configuration, reads pictures by cross-attention, and not in the places of tokens."""
    return bool(getattr(model, "config", model).model_type == idefics.TYPE)


def of(model: Any) -> Class:
    """Return what is known of the class of a vision-language model, or of its configuration."""
    return _CLASSES[getattr(model, "config", model).model_type]


def tower(model: Any) -> Any:
    """Return the part of a vision-language model that reads pictures."""
    return getattr(model.model, of(model).tower)


def reinitialize_tower(model: Any) -> None:
    """Give the tower of a vision-language model random weights."""
    own = tower(model)
    drawn = tower(type(model)(model.config)) if uses_cross_attention(model) else type(own)(model.config.vision_config)
    own.load_state_dict(drawn.state_dict())


def name_image_token(tokenizer: Any, config: Any) -> None:
    """Let a tokenizer know by name which token stands for the patches of a picture, as that of an older folder may not."""
    if parts.token_of(tokenizer) is None:
        tokenizer._set_model_specific_special_tokens({"image_token": tokenizer.convert_ids_to_tokens(config.image_token_id)})


def add_token(tokenizer: Any, mark: str = parts.TOKEN) -> bool:
    """Give a tokenizer the token of a picture, and its template what writes it; return whether the vocabulary has grown.

    `mark`: what the template writes for a picture: the token, with others around it or without.
    """
    from tokenizers import AddedToken

    before = len(tokenizer)
    tokens = [AddedToken(one, special=True, normalized=False) for one in dict.fromkeys(re.findall("<[^>]+>", mark))]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    tokenizer._set_model_specific_special_tokens({"image_token": parts.TOKEN})
    if not _writes_parts(tokenizer, mark):
        tokenizer.chat_template = _PARTS.replace("IMAGE_TOKEN", mark) + tokenizer.chat_template
        if not _writes_parts(tokenizer, mark):
            raise UserError(f"chat_template: writes no {parts.TOKEN} where a message has a picture; give one that does")
    return len(tokenizer) > before


def _writes_parts(tokenizer: Any, mark: str) -> bool:
    """Say whether a template writes what stands for a picture once, and the text beside it."""
    try:
        said = str(tokenizer.apply_chat_template(_PROBE, tokenize=False))
    except Exception:  # a template that adds a text to a list raises whatever it likes
        return False
    return said.count(parts.TOKEN) == said.count(mark) == 1 and "probe8315" in said and "'type'" not in said


def patches_beside(config: Any, batch: Mapping[str, Any]) -> int:
    """Return how many patches of a batch are not among its tokens, as they are where a model reads them in their places."""
    return 0 if reads_images(config) and not uses_cross_attention(config) else vision.patches(config, batch)


def operations(model: Any, batch: Mapping[str, Any]) -> int:
    """Estimate the operations of a step on pictures: six for each parameter and patch, of texts beside them for each token."""
    body = getattr(model, "get_base_model", lambda: model)()
    if not reads_images(body):
        return vision.operations(model, batch)
    reading = [body.model.get_submodule(name) for name in of(body).patch_modules]
    of_patches = sum(one.numel() for part in reading for one in part.parameters())
    rest = body.num_parameters(exclude_embeddings=True) - of_patches
    return int(6 * (vision.patches(body.config, batch) * of_patches + batch["input_ids"].numel() * rest))

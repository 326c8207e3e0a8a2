"""Models that see: the library's LLaVA (Liu et al. 2023), in which a projector makes tokens of a causal model from a vision tower's patches.

What is said here of models that see holds for its Idefics, too, which `idefics` puts together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.models import checkpoint, idefics, parts, vision
from pipeline.system.errors import UserError

FAMILY = "vision_language"
TOKEN = "<image>"  # one for each patch of a picture, or for all of it; a text that says so stays text


class Modules(NamedTuple):
    """The names of the parts of a model that sees, as the library has them."""

    tower: str
    between: tuple[str, ...]  # tower and language model
    language: str


_MODULES = {
    "llava": Modules("vision_tower", ("multi_modal_projector",), "language_model"),
    idefics.TYPE: Modules("vision_model", idefics.NEW, "layers"),
}
_PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "probe8315"}]}]
# Put before a template that reads texts alone: parts become one text, with the token in the place of a picture.
_PARTS = (Path(__file__).parent / "templates" / "parts.jinja").read_text(encoding="utf-8")


def sees(model: Any) -> bool:
    """Say whether a model, or its configuration, is one that sees."""
    return getattr(model, "config", model).model_type in _MODULES


def crosses(model: Any) -> bool:
    """Say whether a model that sees, or its configuration, reads pictures by cross-attention, and not in the places of tokens."""
    return bool(getattr(model, "config", model).model_type == idefics.TYPE)


def modules(model: Any) -> Modules:
    """Return the names of the parts of a model that sees."""
    return _MODULES[model.config.model_type]


def tower(model: Any) -> Any:
    """Return the part of a model that sees which reads pictures."""
    return getattr(model.model, modules(model).tower)


def redraw_tower(model: Any) -> None:
    """Give the tower of a model that sees random weights."""
    own = tower(model)
    drawn = tower(type(model)(model.config)) if crosses(model) else type(own)(model.config.vision_config)
    own.load_state_dict(drawn.state_dict())


def settle(tokenizer: Any, config: Any) -> None:
    """Let a tokenizer know by name which token stands for the patches of a picture, as that of an older folder may not."""
    if parts.token_of(tokenizer) is None:
        tokenizer._set_model_specific_special_tokens({"image_token": tokenizer.convert_ids_to_tokens(config.image_token_id)})


def add_token(tokenizer: Any, mark: str = TOKEN) -> bool:
    """Give a tokenizer the token of a picture, and its template what writes it; return whether the vocabulary has grown.

    `mark`: what the template writes for a picture: the token, with others around it or without.
    """
    from tokenizers import AddedToken

    before = len(tokenizer)
    tokens = [AddedToken(one, special=True, normalized=False) for one in dict.fromkeys(re.findall("<[^>]+>", mark))]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    tokenizer._set_model_specific_special_tokens({"image_token": TOKEN})
    if not _writes_parts(tokenizer, mark):
        tokenizer.chat_template = _PARTS.replace("IMAGE_TOKEN", mark) + tokenizer.chat_template
        if not _writes_parts(tokenizer, mark):
            raise UserError(f"chat_template: writes no {TOKEN} where a message has a picture; give one that does")
    return len(tokenizer) > before


def _writes_parts(tokenizer: Any, mark: str) -> bool:
    """Say whether a template writes what stands for a picture once, and the text beside it."""
    try:
        said = str(tokenizer.apply_chat_template(_PROBE, tokenize=False))
    except Exception:  # a template that adds a text to a list raises whatever it likes
        return False
    return said.count(TOKEN) == said.count(mark) == 1 and "probe8315" in said and "'type'" not in said


def joined(causal: Any, tower: Any, token: int, layer: int) -> Any:
    """Return a LLaVA of a causal model and a vision transformer, with a projector whose weights are drawn.

    `layer`: of the tower, whose patches are read; the first token is left out.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision.layers_before(tower.config, layer)
    settings = LlavaConfig(
        vision_config=tower.config, text_config=causal.config, image_token_index=token, vision_feature_layer=layer,
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        tie_word_embeddings=bool(causal.config.tie_word_embeddings),
    )  # fmt: skip
    model = LlavaForConditionalGeneration(settings)
    model.model.language_model.load_state_dict(causal.base_model.state_dict())
    model.lm_head.load_state_dict(causal.get_output_embeddings().state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.tie_weights()
    model.config.use_cache = False
    return model


def tower_of(parent: str) -> Any:
    """Return the vision transformer of a folder or hub id, in fp32; UserError where it has none."""
    return vision.encoder(parent, role="vision")


def num_patches(config: Any) -> int:
    """Return how many tokens a picture has."""
    if crosses(config):
        return 1
    seen = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return int(seen + (config.vision_feature_select_strategy == "full"))


def processor(tokenizer: Any, images: Any, config: Any) -> Any:
    """Return the library's processor, which makes a model's input of messages with pictures as training does."""
    from transformers import LlavaProcessor

    if crosses(config):
        return idefics.processor(tokenizer, images)
    return LlavaProcessor(
        images, tokenizer, patch_size=config.vision_config.patch_size, chat_template=tokenizer.chat_template,
        vision_feature_select_strategy=config.vision_feature_select_strategy, image_token=tokenizer.image_token,
        num_additional_image_tokens=1,
    )  # fmt: skip


def save(model: Any, tokenizer: Any, folder: Path, images: Any) -> None:
    """Write a complete checkpoint as `checkpoint.save` does, with the processor of texts and pictures; `images`: that of pictures."""
    checkpoint.save(model, tokenizer, folder)
    processor(tokenizer, images, model.config).save_pretrained(folder)

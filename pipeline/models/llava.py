"""The library's LLaVA (Liu et al. 2023): a projector makes tokens of a causal model from the patches of a vision tower."""

from __future__ import annotations

from typing import Any

from pipeline.models import vision


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


def num_tokens(config: Any) -> int:
    """Return how many tokens a picture has."""
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return int(patches + (config.vision_feature_select_strategy == "full"))


def processor(tokenizer: Any, images: Any, config: Any) -> Any:
    """Return the library's processor, which makes a model's input of messages with pictures as training does."""
    from transformers import LlavaProcessor

    return LlavaProcessor(
        images, tokenizer, patch_size=config.vision_config.patch_size, chat_template=tokenizer.chat_template,
        vision_feature_select_strategy=config.vision_feature_select_strategy, image_token=tokenizer.image_token,
        num_additional_image_tokens=1,
    )  # fmt: skip


def model_class() -> Any:
    """Return the library's class that loads one."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText

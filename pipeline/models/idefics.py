"""Models that see by gated cross-attention (Flamingo, Alayrac et al. 2022): the library's Idefics, around a causal model that stays as it is.

A perceiver resampler makes a few latents of a picture's patches. Before a layer of the causal model its tokens attend to the
latents of the last picture before them, and what comes of it is multiplied by the tanh of a gate that begins at zero.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.models import parts, tokenization, vision
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import torch

TYPE = "idefics"
AROUND = "<fake_token_around_image>"
MARK = f"{AROUND}{parts.TOKEN}{AROUND}"  # that the library's processor writes for a picture
NEW = ("gated_cross_attn_layers", "perceiver_resampler")  # parts that neither the causal model nor the tower has
_LANGUAGE = ("embed_tokens.", "layers.", "norm.")
FIRST_NORM = "pre_layrnorm"  # of the tower, as the library spells it; a ViT has none
_CLOSE, _TRIED = 1e-3, 48  # of the largest logit, between the parent's and the new model's; tokens that both are asked about
_LOOKS = (
    "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_center_crop", "crop_size",
)  # fmt: skip  # of an image processor
_LAYER = {  # of a ViT's layer → of the library's tower
    "attention.q_proj": "self_attn.q_proj", "attention.k_proj": "self_attn.k_proj", "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.out_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "layernorm_before": "layer_norm1", "layernorm_after": "layer_norm2",
}  # fmt: skip


@functools.cache
def model_class() -> Any:
    """Return the library's class, which also takes pictures as a LLaVA does: one after another, in the order of their tokens.

    Of a batch of tokens (rows, length) and pictures (pictures, 3, side, side) it makes what the library's processor would.
    """
    import transformers

    class IdeficsForVisionText2Text(transformers.IdeficsForVisionText2Text):  # by this name it is saved
        def __init__(self, config: Any) -> None:
            if getattr(config, "image_token_id", None) is None or config.additional_vocab_size:
                raise UserError(
                    "--parent: is an Idefics whose config.json has no image_token_id, or tokens beside its vocabulary (additional_vocab_size); "
                    "those that `method: cross_attention` makes are read"
                )
            super().__init__(config)
            self.model.register_forward_pre_hook(_arranged, with_kwargs=True)

        @classmethod
        def from_config(cls, config: Any, **_: Any) -> Any:
            """Return a model with random weights."""
            return cls(config)

        def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
            """Say of the whole text which picture a token sees: of what is cached the model is not told again."""
            if kwargs.get("image_attention_mask") is None:
                kwargs["image_attention_mask"] = attended(input_ids, self.config)
            return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    return IdeficsForVisionText2Text


def _arranged(body: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what the library's model is called with: the latents of pictures by rows, and which of them a token sees.

    Rows with fewer pictures than others, and texts alone, have latents of zeros, which nothing sees and nothing is computed for.
    """
    import torch

    ids, pixels, config = named["input_ids"], named.get(vision.PIXELS), body.config
    if named.get("image_attention_mask") is None:
        named["image_attention_mask"] = attended(ids, config)
    if named.get("perceiver_embeddings") is not None or (pixels is not None and pixels.dim() != 4):
        return given, named
    counts = (ids == config.image_token_id).sum(1)
    there = torch.arange(max(1, int(counts.max())), device=ids.device) < counts[:, None]
    sizes = (*there.shape, config.perceiver_config.resampler_n_latents, config.vision_config.embed_dim)
    latents = torch.zeros(sizes, device=ids.device, dtype=body.dtype)
    if pixels is not None:
        seen = body.vision_model(pixel_values=named.pop(vision.PIXELS).to(body.dtype)).last_hidden_state
        latents[there] = body.perceiver_resampler(seen).to(latents.dtype)
    named["perceiver_embeddings"] = latents
    return given, named


def attended(ids: torch.Tensor, config: Any) -> torch.Tensor:
    """Return which picture of its row each token sees, (rows, length, pictures) of 0 and 1: the last one before it.

    After the end of a text none is seen up to the next picture, as the library's processor has it.
    """
    import torch

    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    shows = ids == config.image_token_id
    shown = torch.where(shows, place, -1).cummax(1).values
    ends = torch.where(ids == config.eos_token_id, place, -1).cummax(1).values
    ended = torch.nn.functional.pad(ends, (1, 0), value=-1)[:, :-1]  # before this token
    number = torch.where(shown > ended, shows.cumsum(1), 0)  # from 1 on
    most = max(1, int(shows.sum(1).max()))
    return torch.nn.functional.one_hot(number, most + 1)[:, :, 1:]


def _settle_text(tokenizer: Any) -> None:
    """Raise UserError where the library's processor would make another text of a conversation than the chat template does."""
    text = tokenization.templated_text(tokenizer, [{"role": "user", "content": "a"}])
    if not tokenizer.bos_token or not text.startswith(tokenizer.bos_token):
        raise UserError(
            f"chat_template: does not begin with the tokenizer's bos_token ({tokenizer.bos_token}), which the library's "
            "IdeficsProcessor writes before every text; give one that does, such as chatml.jinja"
        )
    if tokenizer.eos_token_id == tokenization.end_token(tokenizer):
        raise UserError(
            f"method: cross_attention: the tokenizer's eos_token ({tokenizer.eos_token}) also ends each answer, and after it the library's "
            "IdeficsProcessor shows no picture to any token; take a parent with an eos_token of its own, or another chat_template"
        )


def joined(causal: Any, tower: Any, tokenizer: Any, layer: int, sizes: Mapping[str, int]) -> Any:
    """Return an Idefics of a causal model of Llama's kind and a vision transformer, whose new parts are drawn and whose gates are shut.

    `layer`: of the tower, as a LLaVA counts them. `sizes`: `cross_layer_interval`, and `resampler_n_latents` and `resampler_depth` of
    the resampler. Raises UserError for a causal model that Idefics can't hold, told by tensors without a place and by logits.
    """
    from transformers import IdeficsConfig

    from pipeline.models import checkpoint

    _settle_text(tokenizer)
    own, seen = causal.config, tower.config
    if own.num_hidden_layers % sizes["cross_layer_interval"]:
        raise UserError(
            f"cross_layer_interval: {sizes['cross_layer_interval']} does not divide the parent's {own.num_hidden_layers} layers, and the "
            "library would have no cross-attention for the last of them"
        )
    settings: Any = IdeficsConfig(
        **{name: getattr(own, name) for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "initializer_range",
            "max_position_embeddings", "tie_word_embeddings",
        )},
        rms_norm_eps=getattr(own, "rms_norm_eps", 1e-6), rope_parameters=getattr(own, "rope_parameters", None),
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        use_resampler=True, cross_layer_interval=sizes["cross_layer_interval"],
        vision_config={
            "embed_dim": seen.hidden_size, "num_hidden_layers": vision.layers_before(seen, layer),
            **{name: getattr(seen, name) for name in (
                "image_size", "patch_size", "num_channels", "intermediate_size", "num_attention_heads", "hidden_act", "layer_norm_eps",
            )},
        },
        perceiver_config={
            "use_resampler": True, "resampler_n_latents": sizes["resampler_n_latents"], "resampler_depth": sizes["resampler_depth"],
            "resampler_n_heads": seen.num_attention_heads, "resampler_head_dim": seen.hidden_size // seen.num_attention_heads,
        },
    )  # fmt: skip
    settings.image_token_id = parts.token_of(tokenizer)  # which the library keeps and does not read
    model = model_class()(settings)
    _carry_text(model, causal)
    _carry_tower(model.model.vision_model, tower)
    model.tie_weights()
    model.config.use_cache = False
    sample = {"input_ids": [token % own.vocab_size for token in range(7, 7 + _TRIED)]}
    if (moved := checkpoint.apart(model, causal, sample)) > _CLOSE:
        raise UserError(f"--parent: {_UNFIT.format(own.model_type)}: its logits would move by {moved:.0e} of the largest")
    return model


_UNFIT = "a {} can't be held by the library's Idefics, whose language model is a Llama"


def _carry_text(model: Any, causal: Any) -> None:
    """Give a model the weights of a causal one; heads that share keys and values get them each."""
    kind, heads = causal.config.model_type, causal.config.num_attention_heads
    shared = heads // (getattr(causal.config, "num_key_value_heads", None) or heads)
    state = causal.base_model.state_dict()
    for name, weight in state.items():
        if shared > 1 and name.endswith(("k_proj.weight", "v_proj.weight")):
            each = weight.view(heads // shared, -1, weight.shape[1])
            state[name] = each.repeat_interleave(shared, 0).flatten(0, 1)
    try:
        told = model.model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # of sizes that differ
        raise UserError(f"--parent: {_UNFIT.format(kind)} ({' '.join(str(error).split())[:200]})") from None
    strange = [*told.unexpected_keys, *(name for name in told.missing_keys if name.startswith(_LANGUAGE))]
    windows = set(getattr(causal.config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if strange or windows:
        raise UserError(f"--parent: {_UNFIT.format(kind)}: {', '.join(strange[:3] or sorted(windows))} has no place there")
    model.lm_head.load_state_dict(causal.get_output_embeddings().state_dict())


def _carry_tower(own: Any, tower: Any) -> None:
    """Give the library's tower the weights of a ViT, all of which it can hold; only the norm before its first layer is its own.

    That norm begins with the scale that a patch of one colour has, so that the layers read about what they did.
    """
    import torch

    given, kept = tower.state_dict(), own.config.num_hidden_layers
    state = {
        "embeddings.class_embedding": given["embeddings.cls_token"].flatten(),
        "embeddings.patch_embedding.weight": given["embeddings.patch_embeddings.projection.weight"],
        "embeddings.position_embedding.weight": given["embeddings.position_embeddings"][0].clone(),
        "post_layernorm.weight": given["layernorm.weight"], "post_layernorm.bias": given["layernorm.bias"],
    }  # fmt: skip
    state["embeddings.position_embedding.weight"][1:] += given["embeddings.patch_embeddings.projection.bias"]
    for number in range(kept):
        for theirs, ours in _LAYER.items():
            for end in ("weight", "bias"):
                weight = given.get(f"layers.{number}.{theirs}.{end}")  # queries, keys and values may have no bias
                state[f"encoder.layers.{number}.{ours}.{end}"] = (
                    torch.zeros(tower.config.hidden_size) if weight is None else weight
                )
    colours = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)[:, :, None, None]
    with torch.no_grad():
        side = tower.config.image_size
        spread = tower.eval().embeddings(colours.expand(-1, -1, side, side))[:, 1:].std(-1, correction=0).mean()
    state[f"{FIRST_NORM}.weight"] = spread.expand(tower.config.hidden_size).clone()
    state[f"{FIRST_NORM}.bias"] = torch.zeros(tower.config.hidden_size)
    own.load_state_dict(state)


def processor(tokenizer: Any, images: Any, _: Any) -> Any:
    """Return the library's processor: a prompt is a list of texts and pictures, before which it writes the bos_token itself."""
    from transformers import IdeficsImageProcessorPil, IdeficsProcessor

    if not isinstance(images, IdeficsImageProcessorPil):
        images = IdeficsImageProcessorPil(**{name: one for name in _LOOKS if (one := getattr(images, name, None)) is not None})
    return IdeficsProcessor(images, tokenizer, image_size=images.size.height)


def prompt(processor: Any, turns: Sequence[Mapping[str, Any]], answer_next: bool = True) -> list[Any]:
    """Return a conversation with pictures in its parts as the library's processor takes it: texts and pictures, one after another."""
    text = processor.tokenizer.apply_chat_template(parts.bare(turns), add_generation_prompt=answer_next, tokenize=False)
    first, *rest = text.removeprefix(processor.tokenizer.bos_token).split(MARK)
    return [first, *(one for picture, after in zip(parts.pictures(turns), rest, strict=True) for one in (picture, after))]


def made(processor: Any) -> bool:
    """Say whether a processor is that of Idefics."""
    return type(processor).__name__ == "IdeficsProcessor"

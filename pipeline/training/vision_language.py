"""What stages share that train vision-language models: the tower, which weights are trained, and how rows are encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.chain.stage import PARENT, Signature
from pipeline.system.config import option
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from pipeline.chain.run import Run
    from pipeline.data.image_inputs import ImageInputs
    from pipeline.data.types import Row

TOWER = "vision"  # role of a parent
TOWER_FAMILIES = ("vision", "masked_vision", "dual_encoder")  # families of models that have one
PROJECTOR, CROSS_ATTENTION = "projector", "cross_attention"
CONNECTOR_METHODS = (PROJECTOR, CROSS_ATTENTION)  # that train nothing but what lies between tower and language model
_IF_CROSS_ATTENTION = ("method", CROSS_ATTENTION)


@dataclass(frozen=True)
class TowerOptions:
    """Options of the stages that can train vision-language models."""

    tower: Literal["", "frozen", "trained"] = option(
        "",
        "what becomes of the vision tower, where pictures are read: frozen, or trained; empty: texts alone are read",
        omitted=True,
    )


@dataclass(frozen=True)
class VisionLanguageOptions(TowerOptions):
    """Options of the stages that can build a vision-language model from a language model and a tower."""

    vision_feature_layer: int = option(
        -2,
        "layer of the tower whose patches are read, from its last one on, where a new model is put together",
        unless=("tower", ""),
        beside=TOWER,
        omitted=True,
    )
    resampler_n_latents: int = option(
        64,
        "latents that the perceiver resampler makes of a picture",
        at_least=1,
        needs=_IF_CROSS_ATTENTION,
        beside=TOWER,
        omitted=True,
    )
    resampler_depth: int = option(
        6, "layers of the perceiver resampler", at_least=1, needs=_IF_CROSS_ATTENTION, beside=TOWER, omitted=True
    )
    cross_layer_interval: int = option(
        1,
        "layers of the language model for each gated cross-attention",
        at_least=1,
        needs=_IF_CROSS_ATTENTION,
        beside=TOWER,
        omitted=True,
    )


def signature(options: Any, plain: Signature, joins: bool = False) -> Signature:
    """Return what a stage takes and gives that reads pictures where `tower` says so; `joins`: whether it can put a model together."""
    if not options.tower:
        return Signature(plain.reads, {PARENT: plain.takes[PARENT]}, plain.gives)
    families = ("vision_language",)
    if not joins:
        return Signature(plain.reads, {PARENT: families}, families[0])
    return Signature(plain.reads, {PARENT: ("causal", *families), TOWER: TOWER_FAMILIES}, families[0], optional=(TOWER,))


def build_model(run: Run, tokenizer: Any, model: Any) -> Any:
    """Return the parent, if it is a vision-language model, else one made of the parent and of the tower by role `vision`; UserError where they don't fit."""
    from pipeline.models import idefics, llava, parts, vision, vision_language

    options, place = run.options, run.parents.get(TOWER)
    if not options.tower:
        if vision_language.reads_images(model):
            raise UserError(
                f"--parent {run.parent}: reads pictures; say what becomes of its tower by `tower: frozen` or `tower: trained`"
            )
        return model
    if getattr(options, "load_in_4bit", False):
        raise UserError("load_in_4bit: true: is not there for models that read pictures; leave it out")
    crosses = options.method == CROSS_ATTENTION
    if vision_language.reads_images(model):
        if place:
            raise UserError(f"--vision {place}: the parent has a tower already; leave it out")
        own = CROSS_ATTENTION if vision_language.uses_cross_attention(model) else PROJECTOR
        if options.method in CONNECTOR_METHODS and options.method != own:
            raise UserError(
                f"method: {options.method}: {run.parent} has none; what reads its pictures is trained by method: {own}"
            )
        vision_language.name_image_token(tokenizer, model.config)
        if getattr(options, "init", "") == "random_tower":
            vision_language.reinitialize_tower(model)
        return model
    if not place:
        raise UserError(
            f"--vision is missing: {run.parent} reads texts alone, and `tower: {options.tower}` needs a vision tower"
        )
    tower = vision.encoder(place, role=TOWER)
    mark = idefics.MARK if crosses else parts.TOKEN
    if vision_language.add_token(tokenizer, mark):
        run.say(f"adds {mark} to the vocabulary, which stands for a {'picture' if crosses else 'patch of a picture'}")
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    if getattr(options, "init", "") in ("random", "random_tower"):
        tower = type(tower)(tower.config)
    size = f"{tower.config.image_size} by {tower.config.image_size} pixels"
    if not crosses:
        found = llava.joined(model, tower, tokenizer.image_token_id, options.vision_feature_layer)
        run.say(f"reads pictures of {size} as {llava.num_tokens(found.config)} tokens each")
        return found
    found = idefics.joined(model, tower, tokenizer, options.vision_feature_layer, dataclasses.asdict(options))
    run.say(
        f"reads pictures of {size} as {options.resampler_n_latents} latents each by gated cross-attention; all weights are carried over, "
        "but the library's Idefics has one norm more, before the first layer of the tower, which is trained with the resampler"
    )
    return found


def load_image_inputs(run: Run, model: Any) -> ImageInputs | None:
    """Return what encodes the pictures of rows; None where the stage reads none."""
    if not run.options.tower:
        return None
    from pipeline.data.image_inputs import ImageInputs

    role = TOWER if run.parents.get(TOWER) else PARENT
    return ImageInputs.from_folder(run.parents[role], model.config, role)


def default_arguments(options: Any) -> dict[str, Any]:
    """Return keys of the library's class that a vision-language model needs: in a batch of texts alone some of its parts have no gradient."""
    return {"ddp_find_unused_parameters": True} if options.tower else {}


def check_sampling(arguments: Any, options: Any) -> None:
    """Raise UserError for ways of sampling answers that are not given the pictures of a prompt."""
    without_images = [name for name in ("use_vllm", "use_transformers_continuous_batching") if getattr(arguments, name, False)]
    if options.tower and without_images:
        raise UserError(*(f"{name}: true: samples without the pictures of a prompt; leave it out" for name in without_images))


def encoding_settings(image_inputs: ImageInputs | None, longest: int) -> list[Any]:
    """Return all that decides encoded rows beside the rows and the tokenizer, as JSON values."""
    return [longest] if image_inputs is None else [longest, image_inputs.identity]


def add_images(image_inputs: ImageInputs | None, row: Row, tokens: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return an encoded row with its pictures; as it is, where the stage reads none."""
    return {**tokens} if image_inputs is None else image_inputs.add_images(tokens, row.get("images", []))


def set_trainable(model: Any, options: Any) -> None:
    """Say of each weight of a vision-language model whether it is trained, where every parameter, or what lies between its parts, is."""
    from pipeline.models import idefics, vision_language

    if not options.tower or options.method not in ("full", *CONNECTOR_METHODS):
        return
    model.requires_grad_(options.method == "full")
    tower, connector = vision_language.tower(model), vision_language.of(model).connector
    if options.tower == "frozen":
        tower.requires_grad_(False)
    for part in connector:
        getattr(model.model, part).requires_grad_(True)
    if options.method == PROJECTOR:
        _add_zero_gradient(model, getattr(model.model, connector[0]))
    if options.method == CROSS_ATTENTION:
        getattr(tower, idefics.FIRST_NORM).requires_grad_(True)


def _add_zero_gradient(model: Any, part: Any) -> None:
    """Let a part that is trained alone have a gradient of zeros in a batch of texts, which has nothing else to go back to."""

    def hook(_: Any, __: Any, found: Any) -> Any:
        return found + 0 * sum(one.sum() for one in part.parameters()).to(found.dtype)

    model.get_input_embeddings().register_forward_hook(hook)


def adapter(model: Any, options: Any, tokens: Sequence[int]) -> Any:
    """Return peft's configuration of an adapter: on the language model, and on the tower where it is trained.

    The projector of a LLaVA is trained beside it; cross-attention and resampler, which are as large as a language model, get one.
    """
    if options.method in CONNECTOR_METHODS:
        return None
    found = options.adapter(model, tokens)
    if found is None or not options.tower:
        return found
    import torch

    from pipeline.models import vision_language

    named = options.target_modules
    wanted = [] if named == "all-linear" else [named] if isinstance(named, str) else list(named)
    own, adapts = vision_language.of(model), vision_language.uses_cross_attention(model)
    inside = (own.language, *(own.connector if adapts else ()), *((own.tower,) if options.tower == "trained" else ()))
    trained = [f"model.{part}." for part in inside]
    layers = [
        name for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(tuple(trained)) and ".pooler." not in name
        and (not wanted or any(f".{name}".endswith(f".{one}") for one in wanted))
    ]  # fmt: skip
    if not layers:
        raise UserError(f"target_modules: no layer of the model is called {', '.join(wanted)}")
    found.target_modules, found.modules_to_save = set(layers), None if adapts else [*own.connector]
    return found


def sample_columns(image_inputs: ImageInputs | None, example: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Return the columns of one row, by which a merged model is compared with its adapter."""
    return {"input_ids": ids} | (image_inputs.columns([example["pixels"]]) if image_inputs else {})


def save_function(image_inputs: ImageInputs | None) -> Any:
    """Return what saves a model with all that makes its input."""
    from pipeline.models import checkpoint, vision_language

    if image_inputs is None:
        return checkpoint.save

    def save(model: Any, tokenizer: Any, folder: Path) -> None:
        checkpoint.save(model, tokenizer, folder)
        vision_language.of(model).processor(tokenizer, image_inputs.image_processor, model.config).save_pretrained(folder)

    return save

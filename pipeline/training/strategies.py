"""Which parameters a supervised task trains: all, the head, the last layers, an adapter, or a soft prompt."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.system.errors import UserError
from pipeline.training.adapter import NO_LAYER

Strategy = Literal["full", "frozen", "last_n", "lora", "prompt"]


def chosen(strategy: Strategy, model: Any, last_layers: int, rank: int, alpha: int, prompt: list[int]) -> Any:
    """Return the model with only the strategy's parameters trainable; UserError where there would be none.

    `full`: all of them. `frozen`: the head alone, on features that stay as they are. `last_n`: the head and the last
    layers. `lora`: the head and an adapter of every linear layer (Hu et al. 2021). `prompt`: the head and the
    embeddings of the tokens `prompt`, which stand before every text (Lester et al. 2021).
    """
    if strategy == "full":
        return model
    trained_heads = heads(model)
    if strategy in ("lora", "prompt"):
        from peft import LoraConfig, get_peft_model

        tokens = {_reader(model): prompt} if prompt else None
        target = "all-linear" if strategy == "lora" else NO_LAYER
        return get_peft_model(
            model,
            LoraConfig(
                r=rank,
                lora_alpha=alpha,
                target_modules=target,
                modules_to_save=trained_heads or None,
                trainable_token_indices=tokens,
            ),
        )
    trained = [module for name, module in model.named_modules() if name.rpartition(".")[2] in trained_heads]
    if strategy == "last_n":
        trained += [layer for stack in _stacks(model, last_layers) for layer in stack[-last_layers:]]
    if not trained:
        raise UserError(
            f"strategy: {strategy} leaves nothing to train: this task puts no new head on the model; try last_n or lora"
        )
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    return model


def heads(model: Any) -> list[str]:
    """Return the names of the modules that come after the layers: the task's head, and the pooler before it."""
    import torch
    from transformers import AutoModel

    body, words = model.base_model, model.get_output_embeddings()
    parts = {body}
    if body is model:  # as of T5 with a head for questions, whose encoder and decoder are its own
        with torch.device("meta"):
            named = {name for name, _ in AutoModel.from_config(model.config, trust_remote_code=False).named_children()}
        parts = {module for name, module in model.named_children() if name in named}
    found = [name for name, module in model.named_children() if module not in parts and module is not words]
    pooler = [name for name, module in body.named_children() if name == "pooler" and body is not model and module is not None]
    return [name for name in found if any(True for _ in getattr(model, name).parameters())] + pooler


def _reader(model: Any) -> str:
    """Return the name of the layer that embeds a text's tokens; of an encoder-decoder, which has several, the encoder's."""
    from torch.nn import Embedding

    weight = model.get_input_embeddings().weight
    every = model.named_modules(remove_duplicate=False)
    names = [name for name, module in every if isinstance(module, Embedding) and module.weight is weight]
    return str(next((name for name in names if "encoder." in name), names[0]))


def _stacks(model: Any, last_layers: int) -> list[Any]:
    """Return the model's stacks of layers, the encoder's and the decoder's; UserError where they have too few."""
    from torch.nn import ModuleList

    settings = model.config
    depths = {
        getattr(settings, "num_hidden_layers", 0),
        getattr(settings, "decoder_layers", 0),
        getattr(settings, "num_decoder_layers", 0),
    }
    stacks = [module for module in model.base_model.modules() if isinstance(module, ModuleList) and len(module) in depths - {1}]
    if not stacks or any(len(stack) < last_layers for stack in stacks):
        raise UserError(
            f"last_layers: {last_layers}: {type(model).__name__} has no {last_layers} layers of its own to choose from"
        )
    return stacks

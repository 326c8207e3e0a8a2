"""Models of which each process holds a part (FSDP, ZeRO-3): made whole again on the main process, a tensor at a time."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch


def is_sharded(trainer: Any) -> bool:
    """Say whether a trainer leaves each process only a part of the weights."""
    return bool(trainer.is_fsdp_enabled or by_zero3(trainer))


def by_zero3(trainer: Any) -> bool:
    """Say whether DeepSpeed divides the weights, which trl's fused heads take for divided before they are."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return bool(plugin and plugin.zero_stage == 3)


def outline(model: Any) -> Any:
    """Return a copy of a model, its buffers included, whose parameters have shapes and no values.

    It is taken before the model is sharded in place, which changes the classes of its modules.
    """
    known: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        known[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
    copied = copy.deepcopy(model, known)
    for module in copied.modules():
        module.__dict__.pop("forward", None)  # trl's fused head, which holds on to the model that was copied
    return copied


def whole(trainer: Any, outlined: Any) -> Any:
    """Return on the main process the outlined model with the trained weights, and None on the others; all must call it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    main = trainer.accelerator.is_main_process
    values: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        with _gathered(parameter) as full:
            if main:
                values[_plain(name)] = full.detach().to("cpu", torch.float32, copy=True)
    if not main:
        return None
    for name, empty in outlined.named_parameters():
        torch.utils.swap_tensors(empty, torch.nn.Parameter(values.pop(name), requires_grad=empty.requires_grad))
    if values:
        raise RuntimeError(f"the sharded model holds weights that its outline does not: {', '.join(list(values)[:3])}")
    return outlined


@contextlib.contextmanager
def embeddings_at_root(trainer: Any) -> Iterator[None]:
    """Let accelerate shard an adapter's embeddings with the root of its model and not as units of their own.

    peft lets tied embeddings share the rows that it trains, which accelerate does not see, and torch refuses a parameter that
    lies in two units ("Invariant encountered").
    """
    model = trainer.model
    if not trainer.is_fsdp_enabled or not hasattr(model, "peft_config"):
        yield
        return
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


@contextlib.contextmanager
def _gathered(parameter: Any) -> Iterator[torch.Tensor]:
    if hasattr(parameter, "full_tensor"):
        yield parameter.full_tensor()
    elif hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter
    else:
        yield parameter


def _plain(name: str) -> str:
    """Return a parameter's name without what wrappers of compilation and checkpointing put into it."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "").replace("_fsdp_wrapped_module.", "")

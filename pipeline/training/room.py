"""Whether gradients and the optimizer's state fit beside the loaded weights: what is certain before the first step.

Activations come on top, and `make plan` estimates them. So whatever is refused here could not have run.
"""

from __future__ import annotations

from typing import Any

from pipeline.system import hardware
from pipeline.system.optimizers import BESIDE_MUON, MUON, least_state
from pipeline.training import muon


def needed(model: Any, optimizer: str) -> int:
    """Return the bytes that an optimizer keeps at least for the trained parameters of a model."""
    trained = [one for one in model.parameters() if one.requires_grad]
    turned = muon.matrices_of(model) if optimizer == MUON else {id(one) for one in trained}
    return sum(least_state(optimizer if id(one) in turned else BESIDE_MUON) * int(one.numel()) for one in trained)


def missing(trainer: Any, lora: bool) -> str:
    """Return why a run can't fit into memory, with the smallest change that would make it fit; "" where it may.

    `lora`: whether the stage can train an adapter in place of every parameter.
    """
    arguments = trainer.args
    if arguments.fsdp or arguments.deepspeed or arguments.world_size > 1:
        return ""  # what one process holds is the launcher's to say
    gradients = sum(one.numel() * one.element_size() for one in trainer.model.parameters() if one.requires_grad)
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    kept = needed(trainer.model, optimizer)
    free = hardware.room()
    if gradients + kept <= free:
        return ""
    told = f"{_size(free)} of memory can be filled, but gradients need {_size(gradients)} and {optimizer} keeps {_size(kept)}"
    if gradients <= free and kept:
        return f"{told}: optim: adafactor keeps nearly nothing and would fit; `make plan` shows what else would"
    if lora:
        return f"{told}: method: lora trains a small share of the parameters; `make plan` shows what that takes"
    return f"{told}: take a smaller model or a larger machine; `make plan ON=h100` shows what it takes there"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"

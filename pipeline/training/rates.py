"""Whether a learning rate can move the weights at all, or can only wreck them, judged before the first step.

An optimizer of Adam's kind moves each weight by about the learning rate a step, whatever the gradient is (Kingma & Ba 2015,
section 2.1), so both can be known beforehand.
"""

from __future__ import annotations

from typing import Any

import torch

# What the names of such optimizers begin with.
_BOUNDED = ("adam", "lion", "galore_adamw", "apollo_adamw", "stable_adamw", "ademamix")
_ROUNDING = 1e-7  # all steps together, below which a weight stays what it was
_WRECKED = 3.0  # a step, in sizes of the weights


def fault(model: Any, arguments: Any, steps: int) -> str:
    """Return in words that so many steps at the learning rate move no weight, or that one is larger than the weights are, or ""."""
    rate, optimizer = float(arguments.learning_rate), str(getattr(arguments.optim, "value", arguments.optim))
    if not bounded(arguments) or rate <= 0:
        return ""
    if rate * steps < _ROUNDING:
        return (
            f"learning_rate: {rate:g}: {steps:,} steps of {optimizer} would have moved no weight by more than about "
            f"{rate * steps:.0e}, which is lost in rounding"
        )
    found = {name: size for name, size in _steps(model, rate) if size > _WRECKED}
    if not found:
        return ""
    name = max(found, key=lambda one: found[one])
    scale = "learning_rate or lora_alpha" if "LoRA" in name else "learning_rate"
    return (
        f"learning_rate: {rate:g}: one step of {optimizer} moves {name} by about {found[name]:,.0f} times the size of its weights, "
        f"which wrecks it; lower {scale}"
    )


def bounded(arguments: Any) -> bool:
    """Say whether the optimizer moves each weight by about the learning rate, whatever its gradient is."""
    return str(getattr(arguments.optim, "value", arguments.optim)).startswith(_BOUNDED)


def _steps(model: Any, rate: float) -> list[tuple[str, float]]:
    """Return for each trained matrix, and for each one under an adapter, how large a first step is, relative to its weights."""
    found = []
    # Rows of a table, soft prompts and word vectors among them, begin small and are trained at large rates: they are looked up,
    # not multiplied (Lester et al. 2021: 0.3).
    tables = {id(weight) for one in model.modules() if isinstance(one, torch.nn.Embedding) for weight in one.parameters()}
    for name, weight in model.named_parameters():
        if not weight.requires_grad or weight.dim() < 2 or id(weight) in tables or "lora_embedding" in name:
            continue
        if size := _size(weight):  # what begins at zero, as one side of an adapter does, has none
            found.append((name, rate / size))
    for name, module in model.named_modules():
        for key, first in getattr(module, "lora_A", {}).items():
            base = getattr(module.get_base_layer(), "weight", None)
            if base is None or not base.is_floating_point() or not (size := _size(base)):
                continue
            moved = abs(module.scaling[key]) * rate * _size(first.weight) * first.weight.shape[0] ** 0.5  # of B·A, B from 0 on
            found.append((f"{name} through its LoRA", moved / size))
    return found


def _size(weight: torch.Tensor) -> float:
    """Return the root mean square of the weights that are not 0."""
    values = weight.detach()
    used = int(torch.count_nonzero(values))
    return float(values.float().norm()) / used**0.5 if used else 0.0

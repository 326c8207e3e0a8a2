"""Whether a learning rate can move the weights at all, or can only wreck them, judged before the first step.

An optimizer of Adam's kind moves each weight by about the learning rate a step, whatever the gradient is (Kingma & Ba 2015,
section 2.1), so both can be known beforehand.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from pipeline.system.optimizers import MUON

# What the names of such optimizers begin with.
_BOUNDED = ("adam", "lion", "galore_adamw", "apollo_adamw", "stable_adamw", "ademamix", MUON)
_ROUNDING = 1e-7  # all steps together, below which a weight stays what it was
_LOOKED = 1000  # steps of a schedule that are looked at
_RISEN = 0.01  # share of the learning rate that a schedule reaches at some step
_WRECKED = 3.0  # a step, in sizes of the weights


def scheduled(arguments: Any, steps: int) -> tuple[float, float]:
    """Return the sum of the learning rates of all steps and the greatest of them, as the schedule has them."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=float(arguments.learning_rate))
    schedule: Any = get_scheduler(
        arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(steps), steps, arguments.lr_scheduler_kwargs
    )
    if not hasattr(schedule, "lr_lambdas"):
        return float(arguments.learning_rate) * steps, float(arguments.learning_rate)
    count = min(steps, _LOOKED)
    found = [float(arguments.learning_rate * schedule.lr_lambdas[0](steps * at // count)) for at in range(count)]
    return sum(found) * steps / count, max(found)


def fault(model: Any, arguments: Any, total: float, rate: float) -> str:
    """Return in words that rates of this sum move no weight, or that one step at this rate is larger than the weights are, or ""."""
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    if not bounded(arguments):
        return ""
    if total < _ROUNDING:
        return (
            f"learning_rate: {arguments.learning_rate:g}: all steps of {optimizer} together would have moved no weight by more than "
            f"about {total:.0e}, which is lost in rounding"
        )
    if rate < _RISEN * arguments.learning_rate:
        return (
            f"learning_rate: the schedule lets the rate rise to {rate:.0e} of {arguments.learning_rate:g} within the run; look at "
            "warmup_steps and lr_scheduler_kwargs"
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
    """Return for each trained matrix, and for each one under an adapter, how large a first step is, relative to its weights.

    A matrix that is smaller than most, as a branch is that begins near zero, counts as large as half of them are.
    """
    # Rows of a table, soft prompts and word vectors among them, begin small and are trained at large rates: they are looked up,
    # not multiplied (Lester et al. 2021: 0.3).
    tables = {id(weight) for one in model.modules() if isinstance(one, torch.nn.Embedding) for weight in one.parameters()}
    trained = [
        (name, rate, _size(weight))
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.dim() > 1 and id(weight) not in tables and "lora_embedding" not in name
    ]
    adapted = []
    for name, module in model.named_modules():
        for key, first in getattr(module, "lora_A", {}).items():
            base = getattr(module.get_base_layer(), "weight", None)
            if base is not None and base.is_floating_point():
                moved = abs(module.scaling[key]) * rate * _size(first.weight) * first.weight.shape[0] ** 0.5  # B·A, B from 0 on
                adapted.append((f"{name} through its LoRA", moved, _size(base)))
    return [one for group in (trained, adapted) for one in _relative(group)]


def _relative(steps: list[tuple[str, float, float]]) -> list[tuple[str, float]]:
    """Return steps by their sizes or the median of these, whichever is larger; what begins at zero, as B does, has none."""
    sizes = [size for *_, size in steps if size]
    usual = median(sizes) if sizes else 0.0
    return [(name, step / max(size, usual)) for name, step, size in steps if size]


def _size(weight: torch.Tensor) -> float:
    """Return the root mean square of the weights that are not 0."""
    values = weight.detach()
    used = int(torch.count_nonzero(values))
    return float(values.float().norm()) / used**0.5 if used else 0.0

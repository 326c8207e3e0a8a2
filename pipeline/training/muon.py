"""Muon (Jordan et al. 2024): orthogonalised updates for the layers' matrices, AdamW for everything else.

For a matrix W with gradient G, rate η and decay λ, as Liu et al. 2025 (arXiv:2502.16982, equation 4) scale it so that AdamW's rates
serve both:

    M ← μM + (1 − μ)G,   O = UVᵀ of G + μ(M − G) = USVᵀ,   W ← (1 − ηλ)W − 0.2 √max(rows, columns) η O

UVᵀ comes from five steps of a Newton–Schulz iteration, which leaves the singular values between about 0.7 and 1.2.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

_MOMENTUM = 0.95
_COEFFICIENTS, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # of the iteration, as Jordan et al. chose them
_TOGETHER = 2**22  # numbers that are turned at once, so that what is needed beside the weights stays small
_OF_A_LAYER = re.compile(r"\.\d+\.")  # in the name of a parameter: one layer of several


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `matrices: True` move by Muon; they keep one number for each weight, where AdamW keeps two."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with all groups."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["matrices"]]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._move(group)
        return loss

    def _move(self, group: dict[str, Any]) -> None:
        together = defaultdict(list)  # matrices of one shape, whose products are one call
        for weight in group["params"]:
            if weight.grad is not None:
                state = self.state[weight]
                if not state:  # AdamW reads a state that has no `step` as one of an older torch
                    state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}
                state["step"] += 1
                state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
                together[weight.shape].append((weight, weight.grad.lerp(state["momentum"], _MOMENTUM)))
        for shape, found in together.items():
            count = max(1, _TOGETHER // shape.numel())
            for some in (found[at : at + count] for at in range(0, len(found), count)):
                for (weight, _), turned in zip(some, orthogonal(torch.stack([towards for _, towards in some])), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(turned.to(weight.dtype), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return for each of `matrices` (count, rows, columns) about the nearest one with orthonormal rows or columns.

    In bf16 on an accelerator, and in fp32 on a CPU, most of which have no fast products in bf16.
    """
    first, second, third = _COEFFICIENTS
    found: torch.Tensor = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    if tall := found.shape[-2] > found.shape[-1]:
        found = found.mT
    found = found / (found.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = found @ found.mT
        found = first * found + torch.baddbmm(square, square, square, beta=second, alpha=third) @ found
    return found.mT if tall else found


def matrices_of(model: torch.nn.Module) -> set[int]:
    """Return the ids of the parameters that Muon moves: matrices within a layer of several, neither embeddings nor a head."""
    return {
        id(weight)
        for name, module in model.named_modules()
        if _OF_A_LAYER.search(f"{name}.") and not isinstance(module, torch.nn.Embedding)
        for weight in module.parameters(recurse=False)
        if weight.dim() == 2
    }


def build(model: torch.nn.Module, decayed: Iterable[str], **settings: Any) -> Muon:
    """Return the optimizer of a model's trained parameters; `decayed`: names of those that weight decay is for."""
    decayed, decay, matrices = set(decayed), settings.pop("weight_decay"), matrices_of(model)
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups[id(weight) in matrices, name in decayed].append(weight)
    return Muon(
        [
            {"params": weights, "weight_decay": decay if decays else 0.0, "matrices": moved}
            for (moved, decays), weights in sorted(groups.items(), key=lambda one: one[0], reverse=True)
        ],
        **settings,
    )

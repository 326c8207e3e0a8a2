"""Faults that the gradient of the first rows shows before any step is taken.

An optimizer of Adam's kind moves every weight by about the learning rate, so to first order a step changes the loss by the rate
times the sum of the gradient's absolute values. Where that is thousands of times the loss itself, the step leaves the region in
which the gradient means anything; where there is no gradient at all, no step can do anything.
"""

from __future__ import annotations

from typing import Any

import torch

from pipeline.training.outcome import first_batches, undisturbed
from pipeline.training.rates import bounded
from pipeline.training.trainer import StageTrainer

_BATCHES = 32  # of two rows, in which a gradient is looked for
_BEYOND = 1e3  # times its loss, or 1, that a step would change it by; usual settings are below 10
_NOTHING = 1e-9  # a loss that is less than rounding


def fault(trainer: StageTrainer) -> str:
    """Return in words that the first rows give no weight a gradient, or one that a step can't follow, or ""."""
    asked = False
    with undisturbed(trainer):
        for batch in first_batches(trainer, _BATCHES):
            asked = True
            loss, gradient = _gradient(trainer, batch)
            if gradient == 0 or abs(loss) < _NOTHING:
                continue
            change = float(trainer.args.learning_rate) * gradient
            if bounded(trainer.args) and change > _BEYOND * max(abs(loss), 1.0):
                return (
                    f"one step would change the loss of the first rows, {loss:.3g}, by about {change:.0e}: the loss is so steep that any step "
                    "wrecks the model; look at learning_rate and at what scales the loss, such as beta or a weight"
                )
            return ""
    return (
        "the first rows have no loss, or it gives no weight a gradient, so no step would change anything; look at the options that weight it"
        if asked
        else ""
    )


def _gradient(trainer: StageTrainer, batch: Any) -> tuple[float, float]:
    """Return the loss of a batch and the sum of the absolute values of its gradient."""
    model: Any = trainer.model
    with torch.enable_grad():
        loss = trainer.loss_of(batch)
        if not loss.requires_grad:
            return float(loss), 0.0
        loss.backward()
    found = sum(float(one.grad.abs().sum()) for one in model.parameters() if one.grad is not None)
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), found

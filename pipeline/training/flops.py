"""Floating point operations of a step, counted while they run."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.objectives import Objective
from pipeline.training.trainer import ROW

_SAMPLES = 16  # batches that are counted, spread over an epoch


def of_a_batch(objective: Objective, model: Any, batches: Iterable[Any]) -> float:
    """Return the floating point operations of a forward and a backward pass on one device, the mean over batches."""
    twin = copy.deepcopy(model)  # so that the model that trains stays untouched
    device = next(twin.parameters()).device
    counted: list[int] = []
    # The counter does not know a CPU's fused attention; the plain one takes as many operations.
    with torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            inputs = {key: value.to(device) for key, value in batch.items() if key != ROW}
            with FlopCounterMode(display=False) as counter:
                sum(objective.losses(twin, inputs).values(), torch.zeros((), device=device)).backward()
            counted.append(counter.get_total_flops())
    return sum(counted) / len(counted)


def sampled(trainer: Any) -> Iterator[Any]:
    """Yield batches spread over the first epoch, in the order in which the trainer will read them."""
    order = list(trainer._get_train_sampler())
    size = trainer.args.per_device_train_batch_size
    starts = range(0, max(1, len(order) - size + 1), size)
    for start in starts[:: max(1, len(starts) // _SAMPLES)]:
        yield trainer.data_collator([trainer.train_dataset[number] for number in order[start : start + size]])


def steps_for(budget: float, objective: Objective, trainer: Any) -> int:
    """Return how many optimizer steps a budget of operations allows: at least one, at most those of the epochs."""
    arguments = trainer.args
    parts = arguments.gradient_accumulation_steps * arguments.world_size
    paid = int(budget / max(of_a_batch(objective, trainer.model, sampled(trainer)) * parts, 1))
    rows = arguments.per_device_train_batch_size * parts
    epochs = math.ceil(math.ceil(len(trainer.train_dataset) / rows) * arguments.num_train_epochs)
    return int(max(1, min(paid, epochs)))

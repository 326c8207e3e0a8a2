"""Floating point operations of a step, counted as they are run."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from pipeline.objectives import Objective
from pipeline.trainer import ROW

_SAMPLES = 8  # batches that are counted, spread over the data


def of_a_batch(objective: Objective, model: Any, collator: Any, dataset: Any, size: int) -> float:
    """Return the mean over a few batches of the operations of a forward and a backward pass, on one device."""
    twin = copy.deepcopy(model)  # so that nothing of the model that trains is touched
    generator = torch.Generator().manual_seed(0)
    counted: list[int] = []
    with torch.random.fork_rng():
        for _ in range(_SAMPLES):
            places = torch.randint(len(dataset), (size,), generator=generator).tolist()
            batch = collator([{key: value for key, value in dataset[place].items() if key != ROW} for place in places])
            batch = {key: value.to(next(twin.parameters()).device) for key, value in batch.items()}
            with FlopCounterMode(display=False) as counter:
                losses = objective.losses(twin, batch)
                sum(losses.values(), torch.zeros((), device=next(twin.parameters()).device)).backward()
            counted.append(counter.get_total_flops())
    return sum(counted) / len(counted)


def steps_for(
    budget: float, objective: Objective, model: Any, collator: Any, dataset: Any, arguments: TrainingArguments
) -> int:
    """Return how many optimizer steps a budget of operations pays for, at least one, and at most those of the epochs."""
    size = arguments.per_device_train_batch_size
    batches = arguments.gradient_accumulation_steps * arguments.world_size
    paid = int(budget / max(of_a_batch(objective, model, collator, dataset, size) * batches, 1))
    epochs = math.ceil(math.ceil(len(dataset) / (size * batches)) * arguments.num_train_epochs)
    return int(max(1, min(paid, epochs)))

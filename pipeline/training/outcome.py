"""Whether training did what a stage declares: the loss of the same rows before and after it, or the reward of its answers.

A difference counts where it is clear of chance: more than three standard errors, and more than 0.01.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.models.vision import PIXELS
from pipeline.training import sharded
from pipeline.training.trainer import StageTrainer, take_rows

_BATCHES, _ROWS = 8, 2  # that are measured, and rows of each, of which a loss over the batch needs two
_PAIRS, _SEEN = 32, 3.0  # pairs of rows whose pictures are exchanged, and standard errors by which that must cost more
_FEWEST = 4  # measurements below which nothing is clear
_ERRORS, _LEAST = 3.0, 0.01
_ROUNDING = 3e-6
_REWARD = "mean_reward"


def losses(trainer: StageTrainer) -> list[float]:
    """Return the loss of each of the first batches of two rows, without dropout; nothing where a trainer samples its rows."""
    with undisturbed(trainer), _noise(trainer), torch.no_grad():
        return [float(trainer.loss_of(batch)) for batch in first_batches(trainer, _BATCHES)]


@contextlib.contextmanager
def undisturbed(trainer: StageTrainer) -> Iterator[None]:
    """Let a model be asked without dropout, and leave it and all random states as they were."""
    model: Any = trainer.model
    was_training, state = model.training, (random.getstate(), np.random.get_state(), torch.get_rng_state())
    model.eval()
    try:
        with trainer.compute_loss_context_manager():
            yield
    finally:
        model.train(was_training)
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


@contextlib.contextmanager
def _noise(trainer: StageTrainer) -> Iterator[None]:
    """Add the noise of NEFTune (Jain et al. 2023) to the embeddings, the same at each call, where training does: it may cost what is asked without it."""
    from transformers.integrations.neftune import activate_neftune, deactivate_neftune

    if not trainer.args.neftune_noise_alpha:
        yield
        return
    model: Any = trainer.model
    torch.manual_seed(0)
    hook = activate_neftune(model, trainer.args.neftune_noise_alpha)
    model.get_input_embeddings().train()
    try:
        yield
    finally:
        deactivate_neftune(model, hook)


def first_batches(trainer: StageTrainer, most: int) -> Iterator[Any]:
    """Yield the first batches of two rows, as they are in the first epoch; none where a trainer samples its rows, or no process has the whole model."""
    rows: Any = trainer.train_dataset
    if trainer.samples or sharded.is_sharded(trainer) or not hasattr(rows, "__len__"):
        return
    trainer.data_collator.begin(0)
    for start in range(0, min(len(rows), most * _ROWS) // _ROWS * _ROWS, _ROWS):
        batch = trainer.data_collator([rows[at] for at in range(start, start + _ROWS)])
        take_rows(batch)
        yield trainer._prepare_inputs(batch)


def unseen(trainer: StageTrainer) -> str:
    """Return in words that a model's answers cost no more with each other's pictures than with their own, or "".

    Asked of the first rows of a model that reads pictures in a conversation, two by two, where both have as many.
    """
    own, other = [], []
    token = getattr(getattr(trainer.model, "config", None), "image_token_id", None)
    if token is None:
        return ""
    with undisturbed(trainer), torch.no_grad():
        for batch in first_batches(trainer, _PAIRS):
            shown, places = batch.get(PIXELS), (batch["input_ids"] == token).sum(1) if "labels" in batch else []
            if shown is None or len(places) != _ROWS or places[0] != places[1]:
                continue
            turned = shown.roll(len(shown) // _ROWS, 0)
            if not torch.equal(shown, turned):
                own.append(float(trainer.loss_of(batch)))
                other.append(float(trainer.loss_of({**batch, PIXELS: turned})))
    gains = np.subtract(other, own)
    if len(gains) < _BATCHES or gains.mean() > _SEEN * gains.std(ddof=1) / len(gains) ** 0.5:
        return ""
    return (
        f"pictures make no clear difference to the loss of its own first rows: {np.mean(own):.3f} with their own, "
        f"{np.mean(other):.3f} with each other's; do they belong to their rows, and has the tower learned to see?"
    )


def worse(before: Sequence[float], after: Sequence[float]) -> str:
    """Return in words that the same rows cost clearly more after training than before it, or ""."""
    if len(before) < _FEWEST or len(after) != len(before):
        return ""
    changes = np.subtract(after, before)
    if not _clear(float(changes.mean()), float(changes.std(ddof=1)) / len(changes) ** 0.5):
        return ""
    return f"the loss of its own first rows rose from {np.mean(before):.3f} to {np.mean(after):.3f}"


def still(before: Sequence[float], after: Sequence[float]) -> bool:
    """Say whether training left the loss of the same rows as it was, save for rounding."""
    if len(before) < _FEWEST or len(after) != len(before) or np.mean(before) < _LEAST:
        return False
    return bool(np.all(np.abs(np.subtract(after, before)) <= _ROUNDING * np.maximum(1.0, np.abs(before))))


def untaught(log: Sequence[Mapping[str, Any]]) -> str:
    """Return in words that within no group of answers one got another reward than the others, or ""."""
    groups, alike = (sum(entry.get(name, 0) for entry in log) for name in ("groups", "alike_groups"))
    if not groups or alike < groups:
        return ""
    return f"within each of {groups:,} groups all answers got the same reward, so there was nothing to learn"


def less_rewarded(log: Sequence[Mapping[str, Any]]) -> str:
    """Return in words that the second half of a log holds clearly lower rewards than the first, or "" where it doesn't or has none."""
    found = np.array([entry[_REWARD] for entry in log if _REWARD in entry], float)
    found = found[~np.isnan(found)]  # of steps in which no answer got one
    first, second = np.split(found, [len(found) // 2])
    if len(first) < _FEWEST:
        return ""
    error = float(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)) ** 0.5
    if not _clear(float(first.mean() - second.mean()), error):
        return ""
    return f"the mean reward fell from {first.mean():.3f} to {second.mean():.3f}"


def _clear(fall: float, error: float) -> bool:
    return math.isnan(fall) or fall > max(_LEAST, _ERRORS * error)

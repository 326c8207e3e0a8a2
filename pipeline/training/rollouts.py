"""Answers sampled from a model while it is trained or used to make rows: without dropout, each from draws of its own.

What is drawn for an answer depends on its key alone (seed, stage, step or epoch, example, number of the answer), not on
what was sampled before or beside it, so a run that goes on draws what it would have drawn.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.data.types import Row
from pipeline.models.tokenization import render, stop_ids
from pipeline.rewards import Completion
from pipeline.system import hashes

_TOKENS_A_BATCH = 8192  # of prompts and answers that are sampled side by side


@dataclass(frozen=True)
class Rollout(Completion):
    """A completion with the log-probability that each of its ids was sampled with, in nats."""

    logps: tuple[float, ...]


@contextlib.contextmanager
def no_dropout(model: Any) -> Iterator[None]:
    """Take every dropout out of a model while it trains, that of attention included, which is a number and no module.

    trl's `disable_dropout` reaches modules alone. Everything is put back, since the numbers are saved with the model.
    """
    changed: list[tuple[Any, str, float]] = []
    owners = {id(owner): owner for module in model.modules() for owner in (module, getattr(module, "config", None)) if owner}
    for owner in owners.values():
        for name, value in list(vars(owner).items()):
            is_dropout = "drop" in name or (name == "p" and isinstance(owner, torch.nn.modules.dropout._DropoutNd))
            if is_dropout and isinstance(value, float) and value > 0:
                changed.append((owner, name, value))
                setattr(owner, name, 0.0)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def draws(key: Sequence[Any], count: int) -> torch.Tensor:
    """Return `count` numbers between 0 and 1 that depend on the key alone, (count,) float64."""
    generator = torch.Generator().manual_seed(int(hashes.digest(list(key))[:15], 16))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def sample(
    model: Any, tokenizer: Any, rows: Sequence[Row], key: Sequence[Any], answers: int, max_new_tokens: int,
    temperature: float = 1.0, numbers: Sequence[int] | None = None,
) -> list[list[Rollout]]:  # fmt: skip
    """Return `answers` answers to the prompt of each row, in the order of the rows.

    `key`: seed, stage, step or epoch; `numbers`: which examples the rows are, by default their places. Prompts are read
    once, however many answers follow. Sampling ends at the template's end token, which is kept, or at `max_new_tokens`.
    """
    prompts = [render(tokenizer, row["prompt"], answer_next=True) for row in rows]
    numbers = range(len(rows)) if numbers is None else numbers
    order, stops = sorted(range(len(rows)), key=lambda place: len(prompts[place])), stop_ids(tokenizer)
    found: list[list[Rollout]] = [[] for _ in rows]
    was_training = model.training
    model.eval()
    try:
        while order:
            longest = len(prompts[order[-1]]) + max_new_tokens
            places = [order.pop() for _ in range(min(len(order), max(1, _TOKENS_A_BATCH // (longest * answers))))]
            uniform = torch.stack(
                [draws([*key, numbers[place], answer], max_new_tokens) for place in places for answer in range(answers)]
            )
            batch = [prompts[place] for place in places]
            ids, logps = _continue(model, batch, uniform, answers, temperature, int(tokenizer.pad_token_id), stops)
            for at, place in enumerate(places):
                mine = range(at * answers, (at + 1) * answers)
                found[place] = [_rollout(rows[place], prompts[place], ids[one], logps[one], tokenizer, stops) for one in mine]
    finally:
        model.train(was_training)
    return found


def _rollout(row: Row, prompt: list[int], ids: list[int], logps: list[float], tokenizer: Any, stops: Sequence[int]) -> Rollout:
    """Cut an answer behind the token that ends it."""
    length = next((at + 1 for at, token in enumerate(ids) if token in stops), len(ids))
    kept = tuple(ids[:length])
    text = str(tokenizer.decode(list(kept), skip_special_tokens=True)).strip()
    return Rollout(row["prompt"], text, kept, tuple(prompt), kept[-1] in stops, row, tuple(logps[:length]))


@torch.no_grad()
def _continue(
    model: Any, prompts: Sequence[list[int]], uniform: torch.Tensor, answers: int, temperature: float, pad_id: int, stops: list[int]
) -> tuple[list[list[int]], list[list[float]]]:  # fmt: skip
    """Return ids and their log-probabilities, (prompts · answers, steps) both; `uniform` has the same rows and every step's draw."""
    from transformers import DynamicCache

    longest, device = max(map(len, prompts)), model.device
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    placed = "position_ids" in inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
    cache = DynamicCache(config=model.config.get_text_config())
    ending, done = torch.tensor(stops, device=device), torch.zeros(len(uniform), dtype=torch.bool, device=device)
    written: list[torch.Tensor] = []
    nats: list[torch.Tensor] = []
    for step in range(uniform.shape[1]):
        where = {"position_ids": positions} if placed else {}
        logits = (
            model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **where).logits[:, -1].double()
        )
        if not step:
            cache.batch_repeat_interleave(answers)
            logits, mask = logits.repeat_interleave(answers, 0), mask.repeat_interleave(answers, 0)
            positions = positions.repeat_interleave(answers, 0)
        logps = torch.log_softmax(logits / temperature, -1)
        mass = logps.exp().cumsum(-1)
        drawn = uniform[:, step : step + 1].to(device) * mass[:, -1:]
        ids = torch.searchsorted(mass, drawn, right=True).clamp(max=mass.shape[-1] - 1)
        written.append(ids)
        nats.append(logps.gather(-1, ids))
        done |= torch.isin(ids[:, 0], ending)
        if done.all():
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], -1)
        positions = positions[:, -1:] + 1
    return torch.cat(written, -1).tolist(), torch.cat(nats, -1).tolist()

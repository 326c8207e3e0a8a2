"""Log-probabilities of answers: the head runs at answer tokens alone, and the shared prefix of a pair is read once.

trl's fused head scores every position of a batch unless Triton is there, prompts and padding among them, and its pairs
hold each prompt twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from pipeline.data.image_inputs import pixels_once_per_pair
from pipeline.data.tokens import IGNORED

_CLOSE = 1e-3  # nats between both ways of reading the first pairs; another mask than the one that was meant moves them more
_SCORES = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")  # what trl's head gives of each token


class Joined(NamedTuple):
    """Pairs as one row each: the first side, then what the second one has after the tokens that both begin with."""

    columns: dict[str, torch.Tensor]  # (pairs, width) `input_ids` and `position_ids`, (pairs, 1, width, width) `attention_mask`
    places: torch.Tensor  # (2 · pairs, length): where in the flattened rows each token of each side stands


def join(ids: torch.Tensor, mask: torch.Tensor) -> Joined:
    """Join (2 · pairs, length) ids, the first sides in the upper half, padded on the right as `mask` says.

    A token of the second side sees the common beginning and its own side, at the positions that it has alone. Padding is
    at the end, where the causal mask hides it.
    """
    (first, second), (here, there) = ids.chunk(2), mask.bool().chunk(2)
    lengths = here.sum(1, keepdim=True)
    common = ((first == second) & here & there).long().cumprod(1).sum(1, keepdim=True)
    width = int((lengths + there.sum(1, keepdim=True) - common).max())
    place = torch.arange(width, device=ids.device)
    branch = place >= lengths
    position = torch.where(branch, place - lengths + common, place).clamp(max=ids.shape[1] - 1)
    joined = torch.where(branch, second.gather(1, position), first.gather(1, position))
    seen = (place <= place[:, None]) & (~branch[:, :, None] | branch[:, None, :] | (place < common)[:, None, :])
    alone = torch.arange(ids.shape[1], device=ids.device).expand_as(first)
    places = torch.cat([alone, torch.where(alone < common, alone, alone - common + lengths)]).clamp(max=width - 1)
    rows = torch.arange(len(first), device=ids.device).repeat(2)[:, None] * width
    return Joined({"input_ids": joined, "position_ids": position, "attention_mask": seen[:, None]}, rows + places)


def score_answers_alone(model: Any, joins: Callable[[], bool] = lambda: False) -> None:
    """Let a model that has trl's fused head score nothing but answers, and read joined pairs where `joins` says so.

    What comes back is as trl's own: (2 · pairs, length - 1), 0 where nothing is scored.
    """
    fused, body = model.forward, model.base_model

    @functools.wraps(fused)
    def forward(*given: Any, labels: Any = None, fused_lm_head: bool = False, **columns: Any) -> Any:
        if not fused_lm_head:
            return fused(*given, labels=labels, **columns)
        targets = labels[:, 1:]
        scored = targets != IGNORED
        if joins():
            joined, places = join(columns["input_ids"], columns["attention_mask"])
            columns |= pixels_once_per_pair(columns) | joined | {"attention_mask": _additive(model, joined["attention_mask"])}
        else:
            places = torch.arange(labels.numel(), device=labels.device).view(labels.shape)
        wanted = places[:, :-1][scored]

        def pick(_: Any, __: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[wanted][None]
            return output

        hook = body.register_forward_hook(pick)
        try:
            output = fused(**columns, shift_labels=targets[scored][None], fused_lm_head=True)
        finally:
            hook.remove()
        for name in _SCORES:
            if (found := getattr(output, name)) is not None:
                setattr(output, name, found.new_zeros(scored.shape).masked_scatter(scored, found))
        output.label_mask = scored
        return output

    model.forward = forward


def _additive(model: Any, seen: torch.Tensor) -> torch.Tensor:
    """Return a mask as the model's attention takes it: bool, or what is added to the scores."""
    if model.config._attn_implementation == "sdpa":
        return seen
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def sees_all(model: Any) -> bool:
    """Say whether every layer attends to all tokens before, by a mask that can be given."""
    settings = model.config.get_text_config()
    kinds = set(getattr(settings, "layer_types", None) or ["full_attention"])
    return (
        model.config._attn_implementation in ("sdpa", "eager")
        and kinds == {"full_attention"}
        and not getattr(settings, "sliding_window", None)
    )


def agree(apart: torch.Tensor, joined: Callable[[], torch.Tensor]) -> bool:
    """Say whether joined pairs get the log-probabilities that they have apart; some models refuse such a mask or ignore it."""
    try:
        return bool((apart - joined()).abs().max() <= _CLOSE)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False

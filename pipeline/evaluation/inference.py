"""Inference on finished models: log-probabilities of given tokens, and replies to prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.data.batches import pad
from pipeline.data.tokens import IGNORED, CausalCollator, Tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS_A_BATCH = 4096


class Reply(str):
    """The text of a reply, with its length in tokens, the one that ends it left out, and whether the model ended it."""

    tokens: int = 0
    ended: bool = False
    ids: tuple[int, ...] = ()  # as they were written, with the one that ends it


def nats(model: PreTrainedModel, rows: Sequence[Tokens], pad_id: int) -> list[float]:
    """Return −Σ log p over the targets of each row (`input_ids`, `labels`), in nats, in the order of the rows."""
    import torch

    found = [0.0] * len(rows)
    for places, batch in _batches(rows, pad_id):
        batch = {key: value.to(model.device) for key, value in batch.items()}
        targets = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        for place, value in zip(places, losses.sum(-1).tolist(), strict=True):
            found[place] = value
    return found


def margins(
    model: PreTrainedModel, rows: Sequence[Tokens], pad_id: int, rivals: Sequence[int]
) -> list[list[tuple[float, int]]]:
    """Return for each target of each row by how much the likeliest of some other tokens lies above it in logits, and which that is."""
    import torch

    found: list[list[tuple[float, int]]] = [[] for _ in rows]
    for places, batch in _batches(rows, pad_id):
        batch = {key: value.to(model.device) for key, value in batch.items()}
        targets = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits[:, :-1].float()
        own = logits.gather(2, targets.clamp(min=0)[..., None])[..., 0]
        largest = logits[..., list(rivals)].max(-1)
        for place, row, which, wanted in zip(places, largest.values - own, largest.indices, targets, strict=True):
            here = wanted != IGNORED
            found[place] = [(above, rivals[at]) for above, at in zip(row[here].tolist(), which[here].tolist(), strict=True)]
    return found


def divergences(
    teacher: PreTrainedModel, model: PreTrainedModel, rows: Sequence[Tokens], pad_id: int, vocabulary: int
) -> list[float]:
    """Return Σ KL(teacher ‖ model) over the targets of each row, in nats, over the first `vocabulary` tokens that both have."""
    import torch

    def logps(one: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.log_softmax(one(**batch, use_cache=False).logits[:, :-1, :vocabulary].float(), -1)

    found = [0.0] * len(rows)
    for places, batch in _batches(rows, pad_id):
        batch = {key: value.to(model.device) for key, value in batch.items()}
        targets = batch.pop("labels")[:, 1:] != IGNORED
        with torch.no_grad():
            theirs = logps(teacher, batch)
            kl = (theirs.exp() * (theirs - logps(model, batch))).sum(-1) * targets
        for place, value in zip(places, kl.sum(-1).tolist(), strict=True):
            found[place] = value
    return found


def _batches(rows: Sequence[Tokens], pad_id: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield batches of rows, the longest first, with the places of their rows."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
    collate = CausalCollator(pad_id)
    while order:
        longest = len(rows[order[-1]]["input_ids"])
        places = [order.pop() for _ in range(min(len(order), max(1, _TOKENS_A_BATCH // longest)))]
        yield places, collate([rows[place] for place in places])


def rewards(model: PreTrainedModel, rows: Sequence[Tokens], pad_id: int) -> list[float]:
    """Return a reward model's score of each row (`input_ids`, of an encoder also `token_type_ids`), in the order of the rows."""
    import torch

    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
    found = [0.0] * len(rows)
    while order:
        longest = len(rows[order[-1]]["input_ids"])
        places = [order.pop() for _ in range(min(len(order), max(1, _TOKENS_A_BATCH // longest)))]
        batch = pad([rows[place] for place in places], pad_id)
        with torch.no_grad():
            scores = model(**{key: value.to(model.device) for key, value in batch.items()}).logits[:, 0].float()
        for place, score in zip(places, scores.tolist(), strict=True):
            found[place] = score
    return found


def num_targets(rows: Sequence[Tokens]) -> list[int]:
    """Return how many targets each row has."""
    return [sum(label != IGNORED for label in row["labels"]) for row in rows]


def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    seed: int | None = None,
) -> list[Reply]:
    """Return a reply to each prompt (ids): greedy, or with a seed sampled at temperature 1.

    Every batch is seeded by (seed, its place), so that the replies do not depend on what ran before.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found = [Reply()] * len(prompts)
    stops = model.generation_config.eos_token_id
    stops = set(stops if isinstance(stops, list) else [stops])
    sampling: dict[str, Any] = {
        "do_sample": seed is not None,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if seed is not None:
        sampling |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    size = max(1, _TOKENS_A_BATCH // (max((len(prompt) for prompt in prompts), default=1) + max_new_tokens))
    generate: Any = model.generate
    for start in range(0, len(order), size):
        places = order[start : start + size]
        longest = max(len(prompts[place]) for place in places)
        padding = [longest - len(prompts[place]) for place in places]
        ids = torch.tensor(
            [[tokenizer.pad_token_id] * pad + list(prompts[place]) for pad, place in zip(padding, places, strict=True)]
        )
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        if seed is not None:
            torch.manual_seed(seed * 1_000_003 + start)
        with torch.no_grad():
            produced = generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **sampling)
        written = produced[:, longest:]
        for place, ids, text in zip(
            places, written.tolist(), tokenizer.batch_decode(written, skip_special_tokens=True), strict=True
        ):
            reply = found[place] = Reply(text.strip())
            reply.tokens = next((at for at, token in enumerate(ids) if token in stops), len(ids))
            reply.ended = reply.tokens < len(ids)
            reply.ids = tuple(ids[: reply.tokens + 1])
    return found

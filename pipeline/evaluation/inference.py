"""Inference on finished models: log-probabilities of given tokens, and replies to prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline.data.batches import CausalCollator, pad
from pipeline.data.image_inputs import PIXEL_COLUMN, ImageInputs
from pipeline.data.tokens import IGNORED, Tokens
from pipeline.models import parts, vision_language
from pipeline.models.logits import at
from pipeline.models.tokenization import render

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS_A_BATCH = 4096
Collate = Callable[[Sequence[Any]], "dict[str, torch.Tensor]"]


class Reply(str):
    """The text of a reply, with its length in tokens, the one that ends it left out, and whether the model ended it."""

    tokens: int = 0
    ended: bool = False
    ids: tuple[int, ...] = ()  # as they were written, with the one that ends it


def nats(model: PreTrainedModel, rows: Sequence[Tokens], pad_id: int, collate: Collate | None = None) -> list[float]:
    """Return −Σ log p over the targets of each row (`input_ids`, `labels`), in nats, in the order of the rows.

    `collate`: what batches rows, where they hold more than tokens.
    """
    import torch

    found = [0.0] * len(rows)
    for places, batch in _batches(rows, pad_id, collate):
        following = _following(model, batch)
        wanted = following != IGNORED
        losses = torch.nn.functional.cross_entropy(_logits(model, batch, wanted), following[wanted], reduction="none")
        for place, value in zip(places, _by_row(losses, wanted), strict=True):
            found[place] = value
    return found


def margins(
    model: PreTrainedModel, rows: Sequence[Tokens], pad_id: int, rivals: Sequence[int]
) -> list[list[tuple[float, int]]]:
    """Return for each target of each row by how much the likeliest of some other tokens lies above it in logits, and which that is."""
    found: list[list[tuple[float, int]]] = [[] for _ in rows]
    for places, batch in _batches(rows, pad_id):
        following = _following(model, batch)
        wanted = following != IGNORED
        logits = _logits(model, batch, wanted)
        own = logits.gather(1, following[wanted][:, None])[:, 0]
        largest = logits[:, list(rivals)].max(-1)
        told = zip((largest.values - own).tolist(), largest.indices.tolist(), strict=True)
        for place, count in zip(places, wanted.sum(-1).tolist(), strict=True):
            found[place] = [(above, rivals[at]) for above, at in islice(told, count)]
    return found


def divergences(
    teacher: PreTrainedModel, model: PreTrainedModel, rows: Sequence[Tokens], pad_id: int, vocabulary: int
) -> list[float]:
    """Return Σ KL(teacher ‖ model) over the targets of each row, in nats, over the first `vocabulary` tokens that both have."""
    import torch

    found = [0.0] * len(rows)
    for places, batch in _batches(rows, pad_id):
        wanted = _following(model, batch) != IGNORED
        theirs, ours = (torch.log_softmax(_logits(one, batch, wanted)[:, :vocabulary], -1) for one in (teacher, model))
        for place, value in zip(places, _by_row((theirs.exp() * (theirs - ours)).sum(-1), wanted), strict=True):
            found[place] = value
    return found


def _following(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Take the labels out of a batch, which moves to the model; return what follows each position, (batch, length)."""
    import torch

    for name, column in batch.items():
        batch[name] = column.to(model.device)
    return torch.nn.functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=IGNORED)


def _logits(model: PreTrainedModel, batch: dict[str, torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
    """Return the logits at some positions alone, (positions, vocabulary)."""
    import torch

    with torch.no_grad(), at(model, wanted):
        return model(**batch, use_cache=False).logits.float()  # type: ignore[no-any-return]


def _by_row(values: torch.Tensor, wanted: torch.Tensor) -> list[float]:
    """Return the sum of each row's values, which are those of its positions."""
    placed = values.new_zeros(wanted.shape).masked_scatter(wanted, values)
    return placed[:, :-1].sum(-1).tolist()


def _batches(
    rows: Sequence[Tokens], pad_id: int, collate: Collate | None = None
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Yield batches of rows, the longest first, with the places of their rows."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
    collate = collate or CausalCollator(pad_id)
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


def load_image_inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str) -> ImageInputs | None:
    """Return what makes a model's input of pictures, read from its folder, and let the tokenizer know their token; None where it sees none."""
    if not vision_language.reads_images(model):
        return None
    vision_language.name_image_token(tokenizer, model.config)
    return ImageInputs.from_folder(folder, model.config)


def prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_inputs: ImageInputs | None,
    turns: Sequence[Mapping[str, Any]],
) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Return the ids by which the next answer of a conversation is asked for, and its pictures where the model sees.

    `turns`: messages, whose parts hold their pictures. `image_inputs`: by `load_image_inputs`.
    """
    if image_inputs is None:
        return render(tokenizer, parts.texts_alone(turns), answer_next=True), {}
    encoded = image_inputs.add_images(
        {"input_ids": render(tokenizer, parts.bare(turns), answer_next=True)}, parts.pictures(turns)
    )
    return encoded["input_ids"], {
        name: value.to(model.device) for name, value in image_inputs.columns([encoded[PIXEL_COLUMN]]).items()
    }


def num_targets(rows: Sequence[Tokens]) -> list[int]:
    """Return how many targets each row has."""
    return [sum(label != IGNORED for label in row["labels"]) for row in rows]


def replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    seed: int | None = None,
    beside: Callable[[Sequence[int]], Mapping[str, torch.Tensor]] = lambda places: {},
) -> list[Reply]:
    """Return a reply to each prompt (ids): greedy, or with a seed sampled at temperature 1.

    `beside`: places of prompts → what their batch holds beside ids, such as pictures. Every batch is seeded by (seed, its place), so that the replies do not depend on what ran before.
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
            produced = generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                **sampling,
                **{name: value.to(model.device) for name, value in beside(places).items()},
            )
        written = produced[:, longest:]
        for place, ids, text in zip(
            places, written.tolist(), tokenizer.batch_decode(written, skip_special_tokens=True), strict=True
        ):
            reply = found[place] = Reply(text.strip())
            reply.tokens = next((at for at, token in enumerate(ids) if token in stops), len(ids))
            reply.ended = reply.tokens < len(ids)
            reply.ids = tuple(ids[: reply.tokens + 1])
    return found

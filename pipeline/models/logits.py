"""Logits and their negative log-likelihoods, as several objectives and tasks need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

IGNORED = -100  # the label of a position that is no target, as the libraries have it


def token_nats(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "none") -> torch.Tensor:
    """Return -log p of each label, (batch, length) in nats and 0 at ignored labels; with `sum`, their sum."""
    import torch

    nats = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction=reduction
    )
    return nats if reduction == "sum" else nats.view(labels.shape)


@contextmanager
def at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Let a model compute logits at some positions only, (positions, vocabulary): most of its head's work would be wasted.

    `positions`: (batch, length) bool.
    """
    head = getattr(model, "module", model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: (states[0][positions],))
    try:
        yield
    finally:
        hook.remove()


def decoder_logits(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return an encoder-decoder's logits, (batch, length, vocabulary).

    Given labels, a model computes a loss of its own that nobody reads; some (NLLB, Blenderbot) need them to know what
    to decode.
    """
    given = dict(batch)
    shift = getattr(getattr(model, "module", model), "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:
        labels = given.pop("labels")
        if "decoder_input_ids" not in given:
            given["decoder_input_ids"] = shift(labels=labels)
    logits: torch.Tensor = model(**given).logits
    return logits


def summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -Σ log p of targets in nats; `logits`: (targets, vocabulary). It is 0 where there is no target."""
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def num_targets(labels: torch.Tensor) -> torch.Tensor:
    """Return how many labels are targets."""
    return (labels != IGNORED).sum()


def token_scores(logits: torch.Tensor, labels: torch.Tensor) -> tuple[list[float], list[float]]:
    """Return each row's nats and number of targets."""
    return token_nats(logits, labels).sum(-1).tolist(), (labels != IGNORED).sum(-1).float().tolist()

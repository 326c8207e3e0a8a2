"""What fits somebody's data: sizes of a new model, the length that a chain agrees on, how long and in which batches to train.

`make new` measures the data, and each stage writes its nodes from these facts. The figures behind the rules stand in
docs/tried.md and docs/profiles.md: profiles `tiny`, `classics` and `smollm2` on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Lines = dict[str, tuple[Any, str]]  # key of a node's file → value and the reason for it

LENGTHS = (128, 256, 512, 1024)  # tokens of a row that a chain may agree on; longer ones are slow on a CPU
FITTING = 0.99  # share of the rows that the agreed length has to hold
SMALL = 10_000_000  # parameters below which LoRA needs high rates
_SPEED = 1e10  # parameters times tokens that two cores train in a second
_SECONDS = 240  # that a stage may take on two cores
# Bytes of text up to which a model of these sizes learns from it, and its vocabulary.
_SIZES = ((300_000, 96, 3, 512), (2_500_000, 128, 4, 1024), (10_000_000, 160, 5, 2048), (math.inf, 160, 5, 3072))
_HEAD = 32  # width of an attention head


@dataclass(frozen=True)
class Model:
    """The model that a chain starts from: a new one of these sizes, or a base, whose own sizes are not asked."""

    parameters: int
    hidden_size: int = 0
    layers: int = 0
    heads: int = 0
    vocab_size: int = 0

    @property
    def small(self) -> bool:
        """Whether it is so small that LoRA needs high rates."""
        return self.parameters < SMALL


def fitting(size: int) -> Model:
    """Return a new model for so many bytes of text."""
    hidden, layers, vocabulary = next(found for most, *found in _SIZES if size <= most)
    return Model(vocabulary * hidden + layers * 12 * hidden**2, hidden, layers, hidden // _HEAD, vocabulary)


def agreed_length(lengths: Sequence[Sequence[int]], positions: int | None) -> int:
    """Return the shortest of `LENGTHS` that holds nearly all rows of every kind, at most as many as there are positions."""
    needed = max((percentile(found, FITTING) for found in lengths if found), default=LENGTHS[0])
    length = next((candidate for candidate in LENGTHS if candidate >= needed), LENGTHS[-1])
    return min(length, positions or length)


def percentile(values: Sequence[int], share: float) -> int:
    """Return the value that a share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


@dataclass(frozen=True)
class Facts:
    """What one stage is told: its rows, the model it trains, and what the chain has agreed on."""

    model: Model
    max_length: int
    base: str = ""  # folder or hub id that the chain starts from
    parent: str = ""  # node that it goes on from
    chats: bool = False  # whether the model it goes on from has a chat template
    recipe: str = ""
    items: str = ""  # what its rows are called: "conversations"
    rows: int = 0  # for training
    lengths: tuple[int, ...] = ()  # of rows, in tokens, as the stage measures them; a sample where there are very many
    splits: bool = False  # whether longer rows are split and not dropped

    @property
    def fitting(self) -> list[int]:
        """The lengths of rows that are not dropped as too long."""
        return [length for length in self.lengths if self.splits or length <= self.max_length]

    @property
    def kept(self) -> int:
        """How many rows are kept for training."""
        return round(self.rows * len(self.fitting) / max(1, len(self.lengths)))

    @property
    def tokens(self) -> int:
        """How many tokens the kept rows have."""
        return round(self.rows * sum(self.fitting) / max(1, len(self.lengths)))

    def reading(self) -> Lines:
        """Return what every node says of its rows: the recipe and the agreed length."""
        why = f"{FITTING:.0%} of its {self.items} have at most {percentile(self.lengths, FITTING):,} tokens; longer ones are dropped and counted"
        if self.splits:
            why = "tokens of a row, the same in every node; longer documents are split, none is lost"
        return {
            "recipe": (self.recipe, f"{self.rows:,} {self.items} for training, {self.tokens:,} tokens"),
            "max_length": (self.max_length, why),
        }

    def template(self) -> Lines:
        """Return a chat template where the model has none so far."""
        if self.chats:
            return {}
        return {
            "chat_template": (
                "chatml.jinja",
                "what it goes on from has no chat template; this one is in pipeline/models/templates",
            )
        }

    def training(self, batch: int, epochs: int, cost: float = 1.0, packed: bool = True) -> Lines:
        """Return batch, length of training and warmup: so many epochs, or the steps that fit a few minutes on two cores.

        `cost`: passes over a row, one being that of plain training; `packed`: a row of a batch is filled with several.
        """
        examples = math.ceil(self.tokens / self.max_length) if packed else self.kept
        wanted = examples * epochs / batch
        each = batch * (self.max_length if packed else self.tokens / max(1, self.kept))
        affordable = _SECONDS * _SPEED / self.model.parameters / cost / max(1, each)
        steps = max(1, math.ceil(min(wanted, affordable)))
        found: Lines = {
            "per_device_train_batch_size": (batch, f"rows of a step; an epoch is about {examples / batch:,.0f} steps")
        }
        if wanted <= affordable:
            found["num_train_epochs"] = (epochs, f"about {steps:,} steps in all")
        else:
            found["max_steps"] = (
                steps,
                f"what two cores do in about {_SECONDS // 60} minutes; {examples / batch:,.0f} would be an epoch",
            )
        found["warmup_steps"] = (max(1, min(20, steps // 10)), "steps in which the rate rises from 0")
        if steps < 100:
            found["logging_steps"] = (max(1, steps // 20), "a line of the log every so many steps, since there are few")
        if not self.model.small:
            found["save_steps"] = (max(5, steps // 4), "a checkpoint every so many steps, since they are slow")
        return found

    def batch(self, epochs: int, most: int, packed: bool = True) -> int:
        """Return a batch that leaves some hundred steps where the data is small, since many small steps win there."""
        examples = self.tokens / self.max_length if packed else self.kept
        size = most
        while size > 2 and examples * epochs / size < 300:
            size //= 2
        return size

    def steady(self) -> Lines:
        """Return what keeps high rates steady on a small model."""
        if not self.model.small:
            return {}
        return {
            "weight_decay": (0.1, "keeps weights small at a high rate"),
            "adam_beta2": (0.95, "a shorter memory, for a high rate and few steps"),
        }

"""Self-supervised objectives, one file each; the name of the file is the objective's name.

An objective says what a document becomes (`examples`), what of it is hidden (`corrupt`), what the model
is asked (`losses`) and how it is judged on held-out text (`scores`). Its fields are its options.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.system import config
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

    from pipeline.data.shapes import Row

Example = dict[str, Any]
Scores = dict[str, tuple[list[float], list[float]]]  # metric → what is summed and what it is divided by, by row


@dataclasses.dataclass(frozen=True)
class Text:
    """What `examples` reads: rows of text and how they are cut."""

    rows: Sequence[Row]
    tokenizer: PreTrainedTokenizerBase
    max_length: int  # tokens of an example, all special ones included
    language: str  # ISO 639-1, for the bounds of sentences
    seed: int
    dropped: Counter[str]  # rows of which nothing is left, by reason
    left_out: Counter[str]  # parts of rows


class Objective(ABC):
    """What a file in this folder defines: a frozen dataclass, under the name `OBJECTIVE`."""

    family: ClassVar[str]  # of the model that it trains
    accepts: ClassVar[tuple[str, ...]]  # families of a parent that it goes on from
    architectures: ClassVar[tuple[str, ...]]  # model types of transformers, the default first
    vocabulary: ClassVar[str] = "wordpiece"  # kind of tokenizer, one of pipeline.tokenizer.KINDS
    chance: ClassVar[Mapping[str, float]] = {}  # metric → what one reaches who knows nothing
    packs: ClassVar[bool] = False  # whether a row may hold several documents
    accumulates: ClassVar[bool] = True  # whether a batch may be cut in parts

    @property
    def weights(self) -> Mapping[str, float]:
        """What each part of the loss is multiplied by."""
        return {"loss": 1.0}

    @abstractmethod
    def build_model(self, tokenizer: PreTrainedTokenizerBase, architecture: str, **sizes: int) -> Any:
        """Return a model with random weights; UserError if the architecture has no such model."""

    @abstractmethod
    def load_model(self, parent: str) -> Any:
        """Return the model of a folder or hub id; UserError if it can't be loaded."""

    @abstractmethod
    def examples(self, text: Text) -> Iterator[Example]:
        """Yield examples (lists of ids) with the number of their row under `row`; count what is left out."""

    def collator(self, tokenizer: PreTrainedTokenizerBase, dataset: Any, seed: int) -> Any:
        """Return what makes a batch of examples."""
        from pipeline.objectives._batches import Corrupting

        return Corrupting(self, tokenizer, seed)

    def corrupt(self, example: Example, tokenizer: PreTrainedTokenizerBase, chance: np.random.Generator) -> Example:
        """Return the example as the model sees it in one epoch; every choice comes from `chance`."""
        return example

    @abstractmethod
    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return how many items each part of the loss has in a batch."""

    @abstractmethod
    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return each part of the loss, summed over its items, in nats."""

    def judged(self, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return a held-out batch with those targets alone that can't be read off its inputs."""
        return batch

    @abstractmethod
    def scores(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Scores:
        """Return held-out figures of each row of a batch."""

    def fresh(self, model: Any) -> Any:
        """Return a model of the same sizes with random weights, the control of held-out figures."""
        return type(model)(model.config)

    def by_frequency(self, collator: Any, batch: Mapping[str, torch.Tensor]) -> Scores:
        """Return what one reaches who knows how frequent words are and nothing else, where targets don't say it."""
        return {}

    def save(self, model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Write a plain checkpoint that transformers loads."""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def known() -> list[str]:
    """Return the names of all objectives."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str, options: Mapping[str, Any] | None = None) -> Objective:
    """Return an objective by name with its options; UserError naming those that there are."""
    if name not in known():
        raise UserError(f"objective: {name}: no such objective; known are {', '.join(known())}")
    kind: type[Objective] = importlib.import_module(f"{__name__}.{name}").OBJECTIVE
    given = dict(options or {})
    if faults := config.check(given, dict.fromkeys(given, "objective_options"), kind, None):
        raise UserError(*faults)
    return kind(**given)

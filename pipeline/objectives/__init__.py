"""Self-supervised objectives, one file each; the file's name is the objective's name.

An objective says which rows it `reads`, and defines what a document becomes (`examples`), what of it is hidden (`corrupt`), what the model is trained
on (`losses`) and how it is evaluated on held-out text (`scores`, described by `metrics`). Its fields are its options.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.chain.stage import Against
from pipeline.evaluation.metrics import Metric
from pipeline.system import extensions

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

    from pipeline.data.types import Row

Example = dict[str, Any]
Scores = dict[str, tuple[list[float], list[float]]]  # metric → one numerator and one denominator for each row

# Metrics that several objectives give.
LOSS = Metric(
    "loss",
    "mean −log p of what the model has to predict on held-out rows, in nats",
    "nats",
    "less",
)
DETECTION = Metric(
    "detection",
    "how often the model tells a real item from an artificial one: a replaced token, a randomly drawn word; chance level is 50%",
    "share",
    "more",
)
DETECTED = (Against("detection", "chance"), Against("detection", "unigram"))
_HELPERS = ("collator", "evaluator", "negatives")  # modules of this folder that are no objective


@dataclasses.dataclass(frozen=True)
class Text:
    """What `examples` reads: rows of text and how to cut them."""

    rows: Sequence[Row]
    tokenizer: PreTrainedTokenizerBase  # or whatever else `processor` returns
    max_length: int  # tokens of an example, including all special ones
    language: str  # ISO 639-1, for sentence boundaries
    seed: int
    dropped: Counter[str]  # reason → rows of which nothing is left
    truncated: Counter[str]  # reason → rows of which a part is left out


class Objective(ABC):
    """What a file in this folder defines as a frozen dataclass, under the name `OBJECTIVE`."""

    reads: ClassVar[str] = "text"  # dataset type of its rows
    unread: ClassVar[tuple[str, ...]] = ()  # options of the stage that mean nothing for these rows
    family: ClassVar[str]  # of the model that it trains
    accepts: ClassVar[tuple[str, ...]]  # families of a parent whose training it can continue
    towers: ClassVar[
        Mapping[str, tuple[str, ...]]
    ] = {}  # role → families of further parents, which become parts of a new model
    architectures: ClassVar[tuple[str, ...]]  # model types of transformers, the default first
    metrics: ClassVar[tuple[Metric, ...]] = (LOSS,)  # one for each name that `scores` gives
    judged_by: ClassVar[tuple[Against, ...]] = (
        Against("loss", "5-gram"), Against("loss", "neighbours' bigrams"), Against("loss", "unigram"),
    )  # fmt: skip  # the first that was measured is what a push goes by
    tokenizer_type: ClassVar[str] = "wordpiece"  # one of pipeline.models.tokenization.KINDS; "" where rows hold no text
    pipeline_tag: ClassVar[str] = ""  # what the hub calls the use of its model, where the model's class does not tell
    chance_level: ClassVar[Mapping[str, float]] = {}  # metric → what random answers reach
    note: ClassVar[str] = ""  # what the report says of the marked tokens of a batch, where they need explaining
    packs: ClassVar[bool] = False  # whether a training row may hold several documents
    by_row: ClassVar[bool] = True  # whether the examples of a document are the same whatever other documents there are
    accumulates: ClassVar[bool] = True  # whether a batch may be split for gradient accumulation
    together: ClassVar[bool] = False  # whether held-out rows are scored all at once, since each is looked for among all

    def others(self) -> list[Objective]:
        """Return objectives that it is made of."""
        return []

    @property
    def weights(self) -> Mapping[str, float]:
        """What each part of the loss is multiplied by."""
        return {"loss": 1.0}

    def processor(self, folder: str) -> Any:
        """Return what makes the model's input of a row, as it lies in a folder or on a hub: for text the tokenizer, else None."""
        from pipeline.models import tokenization

        return tokenization.load(folder) if self.tokenizer_type else None

    def new_processor(self, learn: Callable[[], Any]) -> Any:
        """Return that of a new model; `learn` trains a tokenizer on the rows."""
        return learn() if self.tokenizer_type else None

    def vocabulary(self, processor: Any) -> int:
        """Return how many tokens there are; 0 where rows have none."""
        return len(processor) if processor else 0

    def same_inputs(self, one: Any, other: Any) -> bool:
        """Say whether two processors make the same of a row, so that losses of their models can be compared."""
        return bool(one.get_vocab() == other.get_vocab()) if one and other else one is other

    def sized(self, processor: Any, length: int) -> str:
        """Return in words what is read at once."""
        return f"vocabulary {len(processor):,}, rows of up to {length} tokens" if processor else f"rows of type {self.reads}"

    def begin(self, parents: Mapping[str, str], learn: Callable[[], Any], architecture: str, **sizes: int) -> tuple[Any, Any]:
        """Return what makes the input of a new model, and that model; `parents`: role of `towers` → folder or hub id."""
        processor = self.new_processor(learn)
        return processor, self.build_model(processor, architecture, **sizes)

    @abstractmethod
    def build_model(self, tokenizer: PreTrainedTokenizerBase, architecture: str, **sizes: int) -> Any:
        """Return a model with random weights; UserError if the architecture has no such model."""

    @abstractmethod
    def load_model(self, parent: str) -> Any:
        """Return the model of a folder or hub id; UserError if it can't be loaded."""

    @abstractmethod
    def examples(self, text: Text) -> Iterator[Example]:
        """Yield examples (lists of ids) with the number of their row under `row`; count what is dropped and truncated."""

    def collator(self, tokenizer: PreTrainedTokenizerBase, dataset: Any, seed: int) -> Any:
        """Return the function that makes a batch of examples."""
        from pipeline.objectives.collator import Corrupting

        return Corrupting(self, tokenizer, seed)

    def held_out_collator(self, tokenizer: PreTrainedTokenizerBase, dataset: Any, seed: int) -> Any:
        """Return the function that makes a batch of held-out examples."""
        return self.collator(tokenizer, dataset, seed)

    def corrupt(self, example: Example, tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator) -> Example:
        """Return the example as the model sees it in one epoch; every random choice comes from `rng`."""
        return example

    @abstractmethod
    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return how many items each part of the loss has in a batch."""

    @abstractmethod
    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return each part of the loss, summed over its items, in nats."""

    def scorable_targets(self, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return a held-out batch without the targets that can be copied from its inputs."""
        return batch

    @abstractmethod
    def scores(self, model: Any, batch: Mapping[str, torch.Tensor]) -> Scores:
        """Return the metrics of each row of a held-out batch."""

    def neighbours(
        self, model: Any, batch: Mapping[str, torch.Tensor], asked: Sequence[int]
    ) -> dict[tuple[str, str], list[list[int]]]:
        """Return what a few rows of a held-out batch find among all of it, where rows are scored `together`.

        (column that is asked by, column that is looked for) → for each of the rows the candidates, the nearest first.
        """
        return {}

    def chance(self, own: Scores) -> Scores:
        """Return what random answers reach on each row of a held-out batch, beside the model's own scores."""
        return {
            metric: ([level * weight for weight in own[metric][1]], own[metric][1])
            for metric, level in self.chance_level.items()
        }

    def fresh(self, model: Any) -> Any:
        """Return a model of the same sizes with random weights, the untrained baseline."""
        return type(model)(model.config)

    def unigram_scores(self, collator: Any, batch: Mapping[str, torch.Tensor]) -> Scores:
        """Return the metrics of a unigram baseline, which knows only how frequent words are, where labels don't give them."""
        return {}

    def rivals(self, known: Sequence[Example], size: int) -> dict[str, Callable[[Mapping[str, torch.Tensor]], Scores]]:
        """Return baselines that count in examples of the training text: name → the metrics of each row of a held-out batch."""
        return {}

    def sample_inputs(self) -> dict[str, torch.Tensor]:
        """Return what its model can be asked with, where that is neither text nor pictures: what is pushed is tried by it."""
        return {}

    def save(self, model: Any, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
        """Write a plain checkpoint that transformers loads."""
        model.save_pretrained(folder)
        if tokenizer:
            tokenizer.save_pretrained(folder)


def known() -> list[str]:
    """Return the names of all objectives."""
    return extensions.known(__name__, _HELPERS)


def roles() -> dict[str, tuple[str, ...]]:
    """Return the roles of further parents that any objective may have, with their families."""
    return {role: families for name in known() for role, families in load(name).towers.items()}


def load(name: str, options: Mapping[str, Any] | None = None) -> Objective:
    """Return an objective by name with its options; UserError naming those that exist."""
    kind = extensions.declared(__name__, name, known(), "objective", "objective", "OBJECTIVE")
    found: Objective = extensions.configured(kind, options, "objective_options")
    return found

"""The registry of what is measured: one file for each evaluator, found by its file.

A file here exports `EVALUATOR`, an instance of a subclass of `Evaluator`. It says which metrics it measures, for
which nodes, and yields a measurement for each model and metric. Table, report and card know no metric by heart.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from pipeline.evaluation.intervals import Figure
    from pipeline.evaluation.subject import Subject

Unit = Literal["share", "nats", "bits", "tokens", "ratio", "score"]
Direction = Literal["more", "less", ""]  # which way is better; "" where neither is


@dataclass(frozen=True)
class Metric:
    """What a figure means, declared once beside the code that measures it; tables, report and card read it here."""

    name: str
    meaning: str  # one sentence for a reader who doesn't know the method
    unit: Unit
    better: Direction
    bound: bool = False  # whether no loss of a model can pass it, so that a chart of losses draws it as a line


@dataclass(frozen=True)
class Measurement:
    """One metric of one model, still item by item, so that models can be compared in pairs."""

    model: str  # the label of a model of the subject, or the name of a baseline
    metric: str
    figure: Figure
    groups: Sequence[str] | None = None  # one an item, where items of a group aren't independent


class Evaluator(ABC):
    """Measures one or a few metrics of a node, of its parent and controls, and of baselines on the same items."""

    metrics: tuple[Metric, ...]
    reads: str = ""  # dataset type of the node's rows; empty for any
    gives: tuple[str, ...] = ()  # families of the node's model; empty for any

    def applies(self, subject: Subject) -> bool:
        """Say whether this can be measured of a node; by default the type of its rows and its family decide."""
        return self.reads in ("", subject.reads) and (not self.gives or subject.node.family in self.gives)

    @abstractmethod
    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield what is measured of the node and of what it is compared with, all over the same items."""


def known() -> list[str]:
    """Return the names of the files in this folder that hold an evaluator."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> Evaluator:
    """Return the evaluator of a file in this folder; UserError where it exports none."""
    module = importlib.import_module(f"{__name__}.{name}")
    found = getattr(module, "EVALUATOR", None)
    if not isinstance(found, Evaluator):
        raise UserError(
            f"{module.__file__}: measures nothing; it needs an instance of a subclass of Evaluator under the name EVALUATOR"
        )
    return found

"""Augmentation: training rows in other versions, one file each; the file's name is the augmentation's name.

An augmentation varies the tokens of an example anew in each epoch (`vary`), or adds further rows before training (`further`).
Its fields are its options. Only training rows are varied, never those of validation or held-out ones.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.data.types import DatasetType, Row
from pipeline.system import extensions

_HELPERS = ("collator",)  # modules of this folder that are no augmentation


class Augmentation(ABC):
    """What a file in this folder defines as a frozen dataclass, under the name `AUGMENTATION`."""

    changes: ClassVar[Literal["tokens", "positions", "rows"]]  # tokens at their places, where tokens stand, or it adds rows
    takes: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # role of a model that it asks → families; nodes, folders or hub ids
    optional: ClassVar[tuple[str, ...]] = ()  # roles that may be left out

    def fault(self, tokenizer: Any) -> str | None:
        """Return why it can't vary what this tokenizer gives, or None."""
        return None

    def vary(self, ids: np.ndarray, ordinary: np.ndarray, tokenizer: Any, rng: np.random.Generator) -> np.ndarray:
        """Return as many token ids, (length,) int64, in another version; only `ordinary` ones, (length,) bool, may change."""
        return ids

    def further(self, rows: Sequence[Row], kind: DatasetType, models: Mapping[str, str]) -> Iterator[tuple[int, Row]]:
        """Yield further rows, each with the number of the row that it is another version of.

        `models`: role → folder or hub id, of the roles that it takes.
        """
        return iter(())


def known() -> list[str]:
    """Return the names of all augmentations."""
    return extensions.known(__name__, _HELPERS)


def roles() -> dict[str, tuple[str, ...]]:
    """Return the roles of models that any augmentation may ask, with their families."""
    return {role: families for name in known() for role, families in declared(name).takes.items()}


def declared(name: str) -> type[Augmentation]:
    """Return an augmentation's class by name; UserError where there is none."""
    kind: type[Augmentation] = extensions.declared(__name__, name, known(), "augmentation", "augmentation", "AUGMENTATION")
    return kind


def load(name: str, options: Mapping[str, Any] | None = None) -> Augmentation:
    """Return an augmentation by name with its options; UserError where there is none, or an option is wrong."""
    found: Augmentation = extensions.configured(declared(name), options, "augmentation_options")
    return found


def ordinary(ids: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Return which tokens are text and none of the tokenizer's own: special ones, soft prompts, (length,) bool."""
    own = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return ~np.isin(ids, sorted(own))

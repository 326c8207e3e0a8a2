"""Self-supervised objectives, one file each; the name of the file is the objective's name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol, cast

from pipeline.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.data.shapes import Row
    from pipeline.data.tokens import Tokens


class Objective(Protocol):
    """What a file in this folder defines, at its top level."""

    FAMILY: str  # of the model that it trains

    def build_model(self, tokenizer: PreTrainedTokenizerBase, architecture: str, **sizes: int) -> Any:
        """Return a model with random weights."""

    def encode(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Tokens:
        """Return ids and labels of one document."""

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Return what makes a batch of rows."""


def load(name: str) -> Objective:
    """Return an objective by name; UserError naming those that there are."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        raise UserError(f"objective: {name}: no such objective; known are {', '.join(known)}")
    return cast(Objective, importlib.import_module(f"{__name__}.{name}"))

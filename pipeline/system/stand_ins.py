"""Modules that stand for others while somebody imports them, who hardly needs them: scipy's matching of boxes, wandb's run."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def standing_for(name: str, **names: Any) -> Iterator[None]:
    """Let a module of these names stand for one that was not imported yet, to whoever imports it meanwhile."""
    module = types.ModuleType(name)
    vars(module).update(names)
    with _in_place_of(name, module):
        yield


@contextlib.contextmanager
def _in_place_of(name: str, module: types.ModuleType) -> Iterator[None]:
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


def _matching(*arguments: Any, **named: Any) -> Any:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(*arguments, **named)


@contextlib.contextmanager
def scipy_when_needed(_: Any) -> Iterator[None]:
    """Let the losses of object detection import scipy's matching of boxes when they call it, not when they are defined."""
    with standing_for("scipy.optimize", linear_sum_assignment=_matching):
        yield


class _Wandb(types.ModuleType):
    """What trl's trainers ask wandb for: its run, of which there is none before somebody imported wandb."""

    @property
    def run(self) -> Any:
        """The run of the process, or None."""
        imported = sys.modules.get("wandb")
        return None if imported in (None, self) else getattr(imported, "run", None)


@contextlib.contextmanager
def wandb_when_needed(_: Any) -> Iterator[None]:
    """Keep trl's trainers from importing wandb where it is installed, for the sake of the cards that they write."""
    module = _Wandb("wandb")
    module.__spec__ = importlib.util.find_spec("wandb")
    with _in_place_of("wandb", module) if module.__spec__ else contextlib.nullcontext():
        yield

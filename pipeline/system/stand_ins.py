"""Stand-ins for modules that a library imports and hardly uses: scipy's assignment solver, experiment trackers."""

from __future__ import annotations

import contextlib
import importlib
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


class _Tracker(types.ModuleType):
    """A tracker that is imported when somebody asks it for more than its run, of which there is none before it was imported."""

    @property
    def run(self) -> Any:
        """The run of the process, or None."""
        imported = sys.modules.get(self.__name__)
        return None if imported in (None, self) else getattr(imported, "run", None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or sys.modules.get(self.__name__) is self:
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def trackers_when_needed(_: Any) -> Iterator[None]:
    """Keep trl's trainers from importing trackers that are installed, for the sake of the cards and times that they might report."""
    with contextlib.ExitStack() as stack:
        for name in ("wandb", "mlflow", "trackio"):
            module = _Tracker(name)
            module.__spec__ = importlib.util.find_spec(name)
            if module.__spec__:
                stack.enter_context(_in_place_of(name, module))
        yield

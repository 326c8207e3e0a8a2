"""Imports without work that no stage needs: what the libraries do while they are imported is most of a short command.

`python -X importtime` shows where the time goes; `make measure` compares a stage with and without this.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


def quicken() -> None:
    """Make later imports of this process quicker; a second call changes nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    # Some two million objects are made that stay; a search for garbage among them after every 700 takes a tenth of the time.
    gc.set_threshold(50_000, 20, 50)
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
    sys.meta_path.insert(0, _Finder())


def settle() -> None:
    """Leave what was imported out of later searches for garbage, of which the Trainer begins with one."""
    if not gc.get_freeze_count():
        gc.freeze()


@contextlib.contextmanager
def _model_files_once(module: Any) -> Iterator[None]:
    """Keep transformers from reading its model files twice: for their folder as a path, and as a string."""
    yield
    read = module.create_import_structure_from_path

    @functools.wraps(read)
    def once(path: str | Path) -> Any:
        path = Path(path)
        return read(path.parent if path.is_file() else path)

    module.create_import_structure_from_path = once


@contextlib.contextmanager
def _packages_found_once(module: Any) -> Iterator[None]:
    """Let accelerate remember which packages there are; to ask reads their metadata, and trainers ask in each step."""
    yield
    module._is_package_available = functools.cache(module._is_package_available)


def _matching(*arguments: Any, **named: Any) -> Any:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(*arguments, **named)


@contextlib.contextmanager
def _scipy_when_needed(_: Any) -> Iterator[None]:
    """Let the losses of object detection import scipy's matching of boxes when they call it, not when they are defined."""
    name = "scipy.optimize"
    if name in sys.modules:
        yield
        return
    stands_for: Any = types.ModuleType(name)
    stands_for.linear_sum_assignment = _matching
    sys.modules[name] = stands_for
    try:
        yield
    finally:
        del sys.modules[name]


_AROUND: dict[str, Callable[[Any], contextlib.AbstractContextManager[None]]] = {
    "transformers.utils.import_utils": _model_files_once,
    "transformers.loss.loss_utils": _scipy_when_needed,
    "accelerate.utils.imports": _packages_found_once,
}


class _Finder(MetaPathFinder):
    """Finds the modules of `_AROUND` where they lie, and runs them within what stands there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> ModuleSpec | None:
        """Return the module's own specification with a loader that does so; None of every other module."""
        spec = PathFinder.find_spec(name, path, target) if name in _AROUND else None
        loader: Any = spec and spec.loader
        if loader is None:
            return None
        run = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            with _AROUND[name](module):
                run(module)

        loader.exec_module = exec_module
        return spec

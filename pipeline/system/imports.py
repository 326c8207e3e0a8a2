"""Imports without work that no stage needs: what the libraries do while they are imported is most of a short command.

`python -X importtime` shows where the time goes; `make measure` compares a stage with and without this.
"""

from __future__ import annotations

import contextlib
import csv
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

from pipeline.system import deferred_compiler, deferred_dtensor, stand_ins


def quicken() -> None:
    """Make later imports of this process quicker; a second call changes nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    # Some two million objects are made that stay; a search for garbage among them after every 700 takes a tenth of the time.
    gc.set_threshold(50_000, 20, 50)
    importlib.metadata.packages_distributions = providers
    sys.meta_path.insert(0, _Finder())


@functools.cache
def providers() -> dict[str, list[str]]:
    """Return package → distributions that provide it, as `importlib.metadata.packages_distributions` does.

    That makes an object for each of some hundred thousand installed files.
    """
    found: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        packages = (distribution.read_text("top_level.txt") or "").split() or _packages(distribution)
        name = distribution.metadata["Name"] if packages else ""
        for package in packages:
            found.setdefault(package, []).append(name)
    return found


def _packages(distribution: importlib.metadata.Distribution) -> set[str]:
    """Return the packages of a distribution that does not list them, by its files."""
    record = distribution.read_text("RECORD")
    names = [row[0] for row in csv.reader(record.splitlines()) if row] if record else map(str, distribution.files or ())
    return {name.partition("/")[0].removesuffix(".py") for name in names if name.endswith(".py")}


@functools.cache  # once in a process: to ask how many objects are left out would count two million
def settle() -> None:
    """Leave what was imported out of later searches for garbage, of which the Trainer begins with one."""
    gc.freeze()


@contextlib.contextmanager
def _model_files_once(module: Any) -> Iterator[None]:
    """Keep transformers from reading its model files twice, for their folder as a path and as a string, and line by line."""
    yield
    read = module.create_import_structure_from_path

    @functools.wraps(read)
    def once(path: str | Path) -> Any:
        path = Path(path)
        return read(path.parent if path.is_file() else path)

    module.create_import_structure_from_path = once
    listed = module.fetch__all__
    # It looks for the last such line, and takes all others apart to find it.
    module.fetch__all__ = functools.wraps(listed)(lambda text: listed(text[text.rfind("\n__all__") + 1 :]))


@contextlib.contextmanager
def _packages_found_once(module: Any) -> Iterator[None]:
    """Let accelerate remember which packages there are; to ask reads their metadata, and trainers ask in each step."""
    yield
    module._is_package_available = functools.cache(module._is_package_available)


_Around = Callable[[Any], contextlib.AbstractContextManager[None]]  # what a module is run within
_AROUND: dict[str, _Around] = {
    "transformers.utils.import_utils": _model_files_once,
    "transformers.loss.loss_utils": stand_ins.scipy_when_needed,
    "accelerate.utils.imports": _packages_found_once,
    **dict.fromkeys(
        ("trl.trainer.base_trainer", "trl.trainer.callbacks", "trl.extras.profiling"), stand_ins.trackers_when_needed
    ),
    **{f"trl.trainer.{name}_trainer": stand_ins.trackers_when_needed for name in ("grpo", "rloo", "distillation")},
}
# Drivers of accelerators: where there is one, torch is left as it is, since what stands in for its parts has run on CPUs alone.
_DRIVERS = ("nvidia*", "kfd", "dxg", "accel*")


@functools.cache
def known() -> tuple[dict[str, _Around], ...]:
    """Return what modules are run within on this machine."""
    own = sys.platform == "linux" and not any(True for name in _DRIVERS for _ in Path("/dev").glob(name))
    return (_AROUND, deferred_compiler.AROUND, deferred_dtensor.AROUND) if own else (_AROUND,)


class _Finder(MetaPathFinder):
    """Finds the modules of `known` where they lie, and runs them within what stands there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> ModuleSpec | None:
        """Return the module's own specification with a loader that does so; None of every other module."""
        around = [some[name] for some in known() if name in some]
        spec = PathFinder.find_spec(name, path, target) if around else None
        loader: Any = spec and spec.loader
        if loader is None:
            return None
        run = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            with contextlib.ExitStack() as within:
                for enter in around:
                    within.enter_context(enter(module))
                run(module)

        loader.exec_module = exec_module
        return spec

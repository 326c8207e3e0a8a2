"""A recipe that is a Python module: one generator function for each dataset type, named like it, called with (split, seed).

A row may say itself why it is left out: {"dropped": "no other verse nearby"}. Beside the functions a module may hold
`FILES`, a function that returns the files that it reads, and `JUDGE`, a `pipeline.data.judge.Judge`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

from pipeline.data import closure, kept
from pipeline.data import types as dataset_types
from pipeline.data.base import Recipe, listing
from pipeline.data.judge import Judge
from pipeline.data.rows import Rows
from pipeline.system import cache, hashes
from pipeline.system.errors import UserError

_ROWS, _DROPPED = "rows.arrow", "dropped.json"  # of an entry of the cache


class PythonRecipe(Recipe):
    """A module that generates rows; what counts is the code that a type needs and the files that are read."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.stem, path
        self.module = _module(path)

    def _files(self) -> list[Path]:
        return list(getattr(self.module, "FILES", list)())

    def _digest(self, name: str) -> str:
        return hashes.digest([closure.texts(self.path, [name, "FILES"]), [hashes.sha256(file) for file in self._files()]])

    def digest(self, type: str) -> str:
        """Return the digest of the code that the function for this type needs, and of the files that the module reads."""
        self._function(type)
        return self._digest(type)

    def contents(self) -> list[tuple[str, str]]:
        """Return the module, the recipes that it imports, and the files that it reads."""
        return listing([*closure.files(self.path), *self._files()])

    def rows(self, type: str, split: str, seed: int) -> Rows:
        """Return what the module's function for this type yields; it is asked once for all nodes and runs, by the digest."""
        identity = cache.key(self.digest(type), type, split, seed)

        def make(folder: Path) -> None:
            drawn, writer = Rows(), kept.Writer(folder / _ROWS)
            for _, row in drawn.sift(self._function(type)(split, seed), type):
                writer.add(row, "")
            writer.close()
            (folder / _DROPPED).write_text(json.dumps(drawn.dropped), encoding="utf-8")

        folder = cache.made(f"rows-{identity}", make)
        dropped = Counter(json.loads((folder / _DROPPED).read_text(encoding="utf-8")))
        rows, _ = kept.load(folder / _ROWS, self.name)
        return Rows(rows, dropped, name=self.name, identity=identity).usable(split)

    def _function(self, type: str) -> dataset_types.Generate:
        if type not in self.types():
            raise UserError(f"{self.path}: gives no rows of type {type}, only {', '.join(self.types())}")
        function: dataset_types.Generate = getattr(self.module, type)
        return function

    def types(self) -> list[str]:
        """Return the types that the module has a function for."""
        return [name for name in dataset_types.known() if callable(getattr(self.module, name, None))]

    @property
    def judge(self) -> Judge | None:
        """The module's `JUDGE`; UserError if it is none."""
        found = getattr(self.module, "JUDGE", None)
        if found is not None and not isinstance(found, Judge):
            raise UserError(f"{self.path}: JUDGE is {type(found).__name__}, not a pipeline.data.judge.Judge")
        return found

    def judge_digest(self) -> str:
        """Return the digest of the code that the judge needs, and of the files that the module reads."""
        return self._digest("JUDGE") if self.judge else ""


def _module(path: Path) -> ModuleType:
    """Import a recipe: a shipped one as what the others import, any other under a name that hides none of them."""
    name = f"{closure.FOLDER.name}.{path.stem}"
    shipped = importlib.util.find_spec(name) if path.resolve().parent == closure.FOLDER else None
    if shipped and shipped.origin and Path(shipped.origin).samefile(path):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(
        f"{name}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}", path
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception:
        del sys.modules[spec.name]
        raise
    return module


@functools.cache
def loaded(path: Path, changed: int) -> PythonRecipe:
    """Return the recipe of a file, the same one while the file was not changed (`changed`: its time of change, in ns)."""
    return PythonRecipe(path)

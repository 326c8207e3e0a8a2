"""The kinds of stages: each a script in stages/, found by its file and imported when somebody asks for it."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

from pipeline import ROOT
from pipeline.chain.stage import Stage
from pipeline.system.errors import UserError
from pipeline.system.words import meant

FOLDER = ROOT / "stages"


def known() -> list[str]:
    """Return the kinds of stages."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def script(kind: str) -> Path:
    """Return the script of a kind; UserError naming the nearest ones if there is none."""
    if kind not in known():
        remedy = meant(kind, known(), f"known are {', '.join(known())}")
        raise UserError(f"stage: {kind}: no such script in stages/; {remedy}")
    return FOLDER / f"{kind}.py"


@cache
def load(kind: str) -> Stage:
    """Return what a stage declares about itself; UserError if there is no such script or it declares nothing."""
    path = script(kind)
    spec = importlib.util.spec_from_file_location(f"stages.{kind}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    declared = getattr(module, "STAGE", None)
    if not (isinstance(declared, type) and issubclass(declared, Stage)):
        raise UserError(f"{path}: declares no stage; it needs a subclass of Stage under the name STAGE")
    return declared()

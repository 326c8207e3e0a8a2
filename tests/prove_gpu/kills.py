"""Nodes that are killed while they train and while they save go on, and end with what an uninterrupted run ends with."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.system import hardware
from tests.prove_gpu import Row
from tests.torture.chain import built
from tests.torture.kills import TRIES, strike, uninterrupted
from tests.torture.outcome import survives

_KILLS = (("steps", "sft"), ("checkpoint save", "pretrain"))
_APART = 1e-2  # of the largest weight: on an accelerator sums may come in another order


def rows(place: Path, small: bool) -> Iterator[Row]:
    """Kill as `make torture` does, and yield what became of each node."""
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    folder = place / "kills"
    folder.mkdir()
    chain = built(folder, [name for _, name in _KILLS])
    windows = uninterrupted(chain)
    for number, (phase, name) in enumerate(_KILLS):
        where, rng = folder / f"kill{number}", random.Random(number)
        hit = any(
            strike(chain, phase, name, windows[name].get(phase, 0.01) * 0.8**attempt, where, rng) for attempt in range(TRIES)
        )
        if not hit:
            yield Row(f"{name}, killed: {phase}", f"not hit in {TRIES} tries", "to be hit", False)
            continue
        wrong = survives(chain, name, where)
        if hardware.device() == "cuda" and wrong.startswith(("another model", "another log", "other files")):
            found = apart(chain.reference / name, where / name)
            yield Row(
                f"{name}, killed: {phase}",
                f"resumed, {found:.1e} of the largest weight apart",
                f"at most {_APART:g}",
                found <= _APART,
            )
        else:
            yield Row(f"{name}, killed: {phase}", wrong[:160] or "resumed to the same bytes", "the same", not wrong)


def apart(one: Path, other: Path) -> float:
    """Return the largest difference of a weight between two folders, of the largest weight."""
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    pairs: list[tuple[Any, Any]] = [(first[name].float(), second[name].float()) for name in first]
    return max(float((a - b).abs().max()) for a, b in pairs) / max(float(a.abs().max()) for a, _ in pairs)

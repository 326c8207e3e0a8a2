"""What a killed node ended with, compared with the uninterrupted run."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.chain import manifest, resume
from pipeline.system import hashes
from tests import checkout
from tests.torture.attempt import Attempt
from tests.torture.chain import EVALUATE, SAVE, Chain


def missing_checkpoint(folder: Path, steps: int) -> str:
    """Return which checkpoint should be there, by the log, and is not; an empty string if there is none or all is well."""
    try:
        logged = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, json.JSONDecodeError):
        return ""
    due = steps if (folder / ".result").exists() else (logged - 1) // SAVE * SAVE
    sealed = [int(path.parent.name.split("-")[1]) for path in folder.glob(f"checkpoint-*/{resume.SEAL}")]
    if due and not (folder / manifest.NAME).exists() and max(sealed, default=0) < due:
        return f"lost work: checkpoint-{due} was due, found {sealed}"
    return ""


def survives(chain: Chain, name: str, where: Path) -> str:
    """Run the same command again; return what is not as in the uninterrupted run, or an empty string."""
    folder, whole = where / name, chain.reference / name
    lost = missing_checkpoint(folder, chain.steps(name)) if name != EVALUATE else ""
    sealed = [int(path.parent.name.split("-")[1]) for path in folder.glob(f"checkpoint-*/{resume.SEAL}")]
    attempt = Attempt(chain, name, where)
    if attempt.process.wait():
        return f"ended with {attempt.process.returncode}: {attempt.told.read_text()[-400:]}"
    if lost:
        return lost
    if name == EVALUATE:
        expected = json.loads((chain.reference / "evaluate.json").read_text())
        return differing(expected, json.loads((where / "evaluate.json").read_text()))
    for path in [*whole.glob("model.safetensors"), *whole.glob("*.parquet")]:
        if hashes.read(folder / path.name) != hashes.read(path):
            return f"another {path.name}"
    if (manifest.read(folder) or {})["outputs"] != (manifest.read(whole) or {})["outputs"]:
        return "other files"
    if checkout.logged(folder) != checkout.logged(whole):
        return f"another log: {checkout.logged(folder)[-2:]}"
    if sealed and not attempt.said(f"goes on from checkpoint-{max(sealed)}") and not attempt.said("up to date"):
        return f"did not go on from checkpoint-{max(sealed)}"
    return "" if not attempt.has("checkpoint-*") and not attempt.has(manifest.CLAIM) else "left something behind"


def differing(expected: object, found: object, place: str = "") -> str:
    """Return where two summaries first differ, with both values; an empty string where they are equal."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        told = expected.keys() - {"seconds"}  # by a clock
        return next(filter(None, (differing(expected[key], found[key], f"{place}/{key}") for key in sorted(told))), "")
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return next(
            filter(None, (differing(*both, f"{place}/{at}") for at, both in enumerate(zip(expected, found, strict=True)))), ""
        )
    return "" if expected == found else f"other figures: {place}: {str(expected)[:120]!r}, then {str(found)[:120]!r}"

"""The record that travels with a pushed model: written as it leaves, and checked before anybody goes by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.chain.finished import Finished
from pipeline.chain.manifest import PUSHED
from pipeline.chain.verify import agrees
from pipeline.evaluation.blocks import Block
from pipeline.hub import leaks, readback
from pipeline.system import hashes
from pipeline.system.errors import UserError

SEAL = "record"  # the digest over the rest of the record


def record(
    made: Mapping[str, Any], files: Mapping[str, str], repositories: Mapping[str, tuple[str, str]], block: Block | None,
    options: Mapping[str, Any], forced: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Return the record of a node as it leaves: cleaned, with its figures, where its parents lie, and a digest over it all.

    `files`: name → sha256 of those that leave with it; `repositories`: outputs → repository and tag of nodes on the hub;
    `options`: how the figures in `block` were measured.
    """
    found = leaks.clean(made)
    found["parents"] = [
        entry | ({"repository": list(repositories[entry["outputs"]])} if entry.get("outputs") in repositories else {})
        for entry in found["parents"]
    ]
    if block and block.own:
        found["figures"] = {"options": dict(options), "own": block.figures}
    found |= {PUSHED: dict(files), "forced": list(forced)}
    return found | {SEAL: hashes.digest(found)}


def read(folder: Path) -> dict[str, Any]:
    """Return the record beside a model, pushed or as its stage left it; UserError where record and files don't agree."""
    found = manifest.read(folder)
    if found is None:
        raise UserError(f"{folder}: has no {manifest.NAME}; only what tristage made can be made again")
    try:
        faults = _altered(folder, found) if PUSHED in found else agrees(Finished(folder, found))
    except (KeyError, TypeError, AttributeError) as error:
        faults = [f"{folder / manifest.NAME}: is not whole ({error})"]
    if faults:
        raise UserError(*faults, f"{folder}: is not what was made; nothing can be said of it")
    return found


def _altered(folder: Path, found: Mapping[str, Any]) -> list[str]:
    """Return what in a downloaded folder is not as it was pushed."""
    name = folder / manifest.NAME
    rest = {key: value for key, value in found.items() if key != SEAL}
    if SEAL not in found:
        return [f"{name}: was pushed without a digest of itself, by an earlier version of tristage; push it again"]
    faults = [f"{name}: was edited after it was pushed"] * (hashes.digest(rest) != found[SEAL])
    faults += [f"{name}: outputs is not the digest of its files"] * (hashes.outputs(found["files"]) != found["outputs"])
    faults += [f"{folder}: {fault}" for fault in readback.differences(folder, found[PUSHED])]
    made = {path: entry["sha256"] for path, entry in found["files"].items() if not leaks.ADAPTER.fullmatch(path)}
    twice = [path for path, digest in found[PUSHED].items() if made.get(path, digest) != digest]
    return faults + [f"{name}: names two digests of {path}" for path in twice]

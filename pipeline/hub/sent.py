"""The record that travels with a pushed model: written as it leaves, and checked before anybody goes by it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
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
_NAME = re.compile(r"\w[\w.-]*")  # of a node, which becomes the name of a folder
# What a record holds, as far as anything goes by it: a type, a pattern, or what lies within. `?` ends a key that may be missing or null.
_PLACE = (str, str)  # repository and tag
_PARENT = {"role": str, "beside": bool, "outputs": str, "node?": _NAME, "hub?": str, "path?": str, "repository?": _PLACE}
_SHAPE: dict[str, Any] = {
    "node": _NAME, "stage": str, "title": str, "script": str, "family": str, "control_of": str, "inputs": str, "outputs": str,
    "config": dict, "recipe": {"digest?": str, "data?": str, "sources?": [[str]], "files?": {str: str}},
    "parents": [_PARENT], "code": {"commit?": str, "dirty": bool, "files": {str: str}}, "versions": {str: str},
    "hardware": {"threads?": int}, "metrics?": dict, "files": {str: {"sha256": str, "size": int}}, f"{PUSHED}?": {str: str},
    "figures?": {"options": dict, "own": {str: {"value": float, "low": float, "high": float}}},
}  # fmt: skip


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
    faults = [f"{folder / manifest.NAME}: is not whole ({fault})" for fault in _misshapen(found, _SHAPE, "")]
    if not faults:
        faults = _altered(folder, found) if found.get(PUSHED) is not None else agrees(Finished(folder, found))
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


def _misshapen(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Yield what in a value is not of a shape, so that nothing that goes by a record meets another type or leaves its folder."""
    wanted = shape if isinstance(shape, type) else list if isinstance(shape, tuple) else type(shape)
    if isinstance(shape, re.Pattern):
        if not (isinstance(value, str) and shape.fullmatch(value)):
            yield f"{where}: {str(value)[:80]!r} is no name"
    elif not _is(value, wanted):
        yield f"{where}: is no {wanted.__name__}"
    elif isinstance(shape, tuple) and len(value) != len(shape):
        yield f"{where}: has {len(value)} values and not {len(shape)}"
    elif isinstance(shape, (list, tuple)):
        for number, item in enumerate(value):
            yield from _misshapen(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, dict) and str in shape:
        for name, item in value.items():
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                yield f"{where}: {name[:80]!r} lies outside of its folder"
            yield from _misshapen(item, shape[str], f"{where}.{name[:80]}")
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            name = key.rstrip("?")
            if value.get(name) is not None:
                yield from _misshapen(value[name], inner, f"{where}.{name}".lstrip("."))
            elif name == key:
                yield f"{where}.{name}: is missing".lstrip(".")


def _is(value: object, wanted: type) -> bool:
    """Say whether a value of JSON is of a type: a whole number is one of float, and yes or no is no number."""
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)

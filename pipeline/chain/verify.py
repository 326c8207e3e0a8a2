"""Whether a finished stage is as it was made, and made from the parents that are there now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.system import hashes


def agrees(folder: Path, record: dict[str, Any]) -> list[str]:
    """Return what in a stage directory does not agree with its record, or the record with itself."""
    faults = [f"{folder}: {fault}" for fault in manifest.altered(folder, record, hashes.read)]
    if manifest.outputs(record["files"]) != record["outputs"]:
        faults.append(f"{folder / manifest.NAME}: outputs is not the digest of its files")
    if manifest.digest(record["asked"]) != record["inputs"]:
        faults.append(f"{folder / manifest.NAME}: inputs is not the digest of what was asked")
    return faults


def parent_folder(folder: Path, record: dict[str, Any], made_from: dict[str, Any]) -> Path:
    """Return where a stage's parent lies: where it was asked for on the command line, else beside the stage."""
    foreign = made_from["path"] in record["overrides"]["parents"]
    return Path(made_from["path"]) if foreign else folder.parent / Path(made_from["path"]).name


def descends(folder: Path, record: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return how a stage's parents differ from those that it was made from, and which are not there to compare."""
    faults, absent = [], []
    for made_from in record["parents"]:
        parent = parent_folder(folder, record, made_from)
        found = manifest.read(parent)
        if found is None and (parent / manifest.CLAIM).exists():
            faults.append(f"{folder}: its parent {parent} is half made; make it again")
        elif not parent.is_dir():
            absent.append(f"{folder.name}: its parent {made_from.get('hub') or parent} is not there to be held against")
        else:
            outputs = found["outputs"] if found else manifest.outputs(manifest.files(parent, hashes.read))
            if outputs != made_from.get("outputs"):
                what = found["stage"] if found else "model"
                faults.append(f"{folder}: was made from another {what} than {parent}; make {record['stage']} again")
    return faults, absent

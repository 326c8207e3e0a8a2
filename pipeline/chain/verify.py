"""Whether a finished node is as it was made, and made from the parents that are there now."""

from __future__ import annotations

from pathlib import Path

from pipeline.chain import manifest
from pipeline.chain.finished import Finished, place, read
from pipeline.system import hashes


def agrees(node: Finished) -> list[str]:
    """Return what in a node's folder does not agree with its record, or the record with itself."""
    folder, record = node.folder, node.record
    faults = [f"{folder}: {fault}" for fault in manifest.altered(folder, record, hashes.read)]
    if hashes.outputs(record["files"]) != record["outputs"]:
        faults.append(f"{folder / manifest.NAME}: outputs is not the digest of its files")
    if hashes.digest(record.get("request")) != record["inputs"]:
        faults.append(f"{folder / manifest.NAME}: inputs is not the digest of its request")
    return faults


def descends(node: Finished) -> tuple[list[str], list[str]]:
    """Return how a node's parents differ from those that it was made from, and which are not there to compare."""
    faults, absent = [], []
    for entry in node.record["parents"]:
        role, where = entry["role"], Path(place(node.folder, entry))
        found = read(where) if "hub" not in entry else None
        if found is None and (where / manifest.CLAIM).exists():
            faults.append(f"{node.folder}: its {role} {where} is half made; make it again")
        elif not where.is_dir():
            absent.append(f"{node.name}: its {role} {entry.get('hub') or where} is not there to be compared")
        else:
            outputs = found.record["outputs"] if found else hashes.outputs(hashes.files(where, hashes.read))
            if outputs != entry.get("outputs"):
                what = where.name if found else "model"
                faults.append(f"{node.folder}: was made from another {what} than {where}; make {node.name} again")
    return faults, absent

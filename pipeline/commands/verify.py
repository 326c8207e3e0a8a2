"""Read every finished node again and compare it with its record, and each with what it was made from.

    python -m pipeline.commands.verify --runs runs/tiny

Nothing is remembered and nothing is written. Status 2 and one line for each thing that does not agree.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.chain import manifest
from pipeline.chain.finished import Finished, read
from pipeline.chain.verify import agrees, descends
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "OUT"}


def main() -> int:
    """Check one folder of nodes."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("runs",), sys.argv[1:])
    runs = Path(str(flags.get("runs", "runs/tiny")))
    folders = sorted(path.parent for path in runs.glob(f"*/{manifest.NAME}"))
    if not folders:
        faults.append(f"{runs}: no finished node; run make first")
    nodes: dict[str, Finished] = {}
    notes: list[str] = []
    for folder in folders:
        found, absent = _faults(folder, nodes)
        faults += found
        notes += absent
    summary = manifest.read(runs, "evaluate.json")
    for name, outputs in (summary or {}).get("measured", {}).items():
        if name not in nodes or nodes[name].record["outputs"] != outputs:
            faults.append(f"{runs / 'evaluate.json'}: measured another {name} than {runs / name}; make evaluate")
    for note in notes:
        say("verify", note)
    if faults:
        raise UserError(*faults)
    say("verify", f"{len(folders)} nodes{' and evaluate.json' if summary else ''} agree with their records and with each other")
    return 0


def _faults(folder: Path, nodes: dict[str, Finished]) -> tuple[list[str], list[str]]:
    """Return what does not agree in a node's folder, and which parents are not there; a node that agrees joins `nodes`."""
    try:
        node = read(folder)
        assert node
        nodes[folder.name] = node
        differs, absent = descends(node)
        found = agrees(node) + differs
    except UserError as error:
        return list(error.faults), []
    if not found:
        size = sum(entry["size"] for entry in node.record["files"].values())
        say(folder.name, f"{len(node.record['files'])} files, {size / 1e6:.1f} MB: as they were made")
    return found, absent


if __name__ == "__main__":
    sys.exit(process.execute(main))

"""Read every finished stage again and hold it against its record, and each against what it was made from.

    python stages/verify.py --runs runs/tiny

Nothing is remembered and nothing is written. Status 2 and one line for each thing that does not agree.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say
from pipeline.chain.verify import agrees, descends


def main() -> int:
    """Check one folder of stages."""
    flags, faults = config.only(("runs",), sys.argv[1:])
    runs = Path(str(flags.get("runs", "runs/tiny")))
    folders = sorted(path.parent for path in runs.glob(f"*/{manifest.NAME}"))
    if not folders:
        faults.append(f"{runs}: no finished stage; run make first")
    records: dict[Path, dict[str, Any]] = {}
    notes: list[str] = []
    for folder in folders:
        try:
            records[folder] = manifest.read(folder) or {}
            differs, absent = descends(folder, records[folder])
            found = agrees(folder, records[folder]) + differs
            notes += absent
        except UserError as error:
            found = list(error.faults)
        faults += found
        if not found:
            size = sum(entry["size"] for entry in records[folder]["files"].values())
            say(folder.name, f"{len(records[folder]['files'])} files, {size / 1e6:.1f} MB: as they were made")
    summary = manifest.read(runs, "evaluate.json")
    for name, outputs in (summary or {}).get("measured", {}).items():
        if records.get(runs / name, {}).get("outputs") != outputs:
            faults.append(f"{runs / 'evaluate.json'}: measured another {name} than {runs / name}; make evaluate")
    for note in notes:
        say("verify", note)
    if faults:
        raise UserError(*faults)
    say(
        "verify", f"{len(folders)} stages{' and evaluate.json' if summary else ''} agree with their records and with each other"
    )
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

"""Say what each node of a profile will take before anything is made: parameters, operations, memory, disk, time, energy and cost.

    python -m pipeline.commands.plan --profile tiny --runs runs [--on h100x8] [--utilisation 0.4] [--json yes]

Each node's own trainer runs in a scratch folder, which is removed. Without --on the plan is for this machine, and 20 steps of
each node are taken and timed; with --on it is for so many devices of a known kind, at a share of their peak (--utilisation).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, profile
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"profile": "PROFILE", "runs": "RUNS", "on": "ON"}
NAME = "plan.json"


def main() -> int:
    """Plan one profile; nothing is made but the plan. Status 1 where a node does not fit."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("profile", "runs", "on", "utilisation", "json"), sys.argv[1:], switches=("json",))
    share = flags.get("utilisation", None)
    if share is not None and not (isinstance(share, (int, float)) and 0 < share <= 1):
        faults.append(
            f"command line: --utilisation: expected a share of the machine's peak, above 0 and at most 1, found {share!r}"
        )
    if faults:
        raise UserError(*faults)
    whole = profile.load(profile.find(str(flags.get("profile", "tiny"))))
    from pipeline.commands import _plan
    from pipeline.commands._plan import devices, table

    machine = devices.chosen(str(flags.get("on", "")))
    runs = Path(str(flags.get("runs", "runs"))) / whole.name
    utilisation = float(share or devices.UTILISATION)
    with tempfile.TemporaryDirectory() as folder:
        planner = _plan.Planner(whole, runs, Path(folder), machine, utilisation)
        found = []
        for one in planner.planned():
            found.append(one)
            if not flags["json"]:
                for line in table.lines(one, machine):
                    say(one.name, line)
    record: dict[str, Any] = {
        "profile": whole.name, "on": machine.name, "devices": machine.count, "utilisation": None if machine.here else utilisation,
        "nodes": [one.record(machine) for one in found],
    }  # fmt: skip
    runs.mkdir(parents=True, exist_ok=True)
    manifest.write_json(runs / NAME, record)
    if flags["json"]:
        print(json.dumps(record, indent=1))
    else:
        for line in table.whole(found, machine, utilisation):
            say("plan", line)
        say("plan", f"also in {runs / NAME}")
    return 0 if all(one.why or one.fits for one in found) else 1


if __name__ == "__main__":
    sys.exit(process.execute(main))

"""Say what a profile will take before anything is made: parameters, operations, memory, disk, time, energy and cost of each node.

    python -m pipeline.commands.plan --profile tiny --runs runs [--on h100x8] [--utilisation 0.4] [--json yes]

Each node is looked at by its own trainer in a scratch folder, which is removed. Without --on the plan is for this machine, on
which 20 steps of each node are taken and timed; with it for so many devices of a known kind, at a stated share of their peak.
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
    flags, faults = config.only(("profile", "runs", "on", "utilisation", "json"), sys.argv[1:])
    share = flags.get("utilisation", None)
    if share is not None and not (isinstance(share, float) and 0 < share <= 1):
        faults.append(
            f"command line: --utilisation: {share}: a share of the machine's peak, above 0 and at most 1, such as 0.4"
        )
    if faults:
        raise UserError(*faults)
    whole = profile.load(profile.find(str(flags.get("profile", "tiny"))))
    from pipeline.commands import _plan
    from pipeline.commands._plan import devices, table

    machine = devices.chosen(str(flags.get("on", "")))
    runs = Path(str(flags.get("runs", "runs"))) / whole.name
    utilisation = float(share or devices.UTILISATION)
    quiet = flags.get("json") == "yes"
    with tempfile.TemporaryDirectory() as folder:
        planner = _plan.Planner(whole, runs, Path(folder), machine, utilisation)
        found = []
        for one in planner.planned():
            found.append(one)
            if not quiet:
                for line in table.lines(one, machine):
                    say(one.name, line)
    record: dict[str, Any] = {
        "profile": whole.name, "on": machine.name, "devices": machine.count, "utilisation": None if machine.here else utilisation,
        "nodes": [one.record(machine) for one in found],
    }  # fmt: skip
    runs.mkdir(parents=True, exist_ok=True)
    manifest.write_json(runs / NAME, record)
    if quiet:
        print(json.dumps(record, indent=1))
    else:
        for line in table.whole(found, machine, utilisation):
            say("plan", line)
        say("plan", f"also in {runs / NAME}")
    return 0 if all(one.why or one.fits for one in found) else 1


if __name__ == "__main__":
    sys.exit(process.execute(main))

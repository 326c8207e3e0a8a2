"""Read every node's configuration, template, parents and data, and show all faults of the chain at once.

    python -m pipeline.commands.check --profile tiny --runs runs

Nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.chain import check, directory, profile
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"profile": "PROFILE", "runs": "RUNS"}


def main() -> int:
    """Check one profile; nothing is trained."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("profile", "runs"), sys.argv[1:])
    if faults:
        raise UserError(*faults)
    whole = profile.load(profile.find(str(flags.get("profile", "tiny"))))
    runs = Path(str(flags.get("runs", "runs"))) / whole.name
    for node in check.examine(whole, runs):
        made = whole.nodes[node.name]
        parents = ", ".join(f"{name}" if role == "parent" else f"{role} {name}" for role, name in made.parents.items())
        control = f", a control of {made.control_of}" if made.control_of else ""
        say(
            node.name,
            f"{made.stage.title}{f' of {parents}' if parents else ''}{control}; {node.told or ('at fault' if node.faults else 'reads no rows')}",
        )
        faults += [fault for fault in node.faults if fault not in faults]
    if faults:
        raise UserError(*faults)
    check.remember(whole, runs)
    following = directory.make_line(str(flags.get("profile", "tiny")), runs.parent)
    say("check", f"profile {whole.name}: {len(whole.nodes)} nodes, no fault; next: {following}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

"""Read every node's configuration, template, parents and data, and show all faults of the chain at once.

    python -m pipeline.commands.check --profile tiny --runs runs [--deep yes]

Nothing is trained. With `--deep yes` (make's DEEP=1) each node is then trained for a few steps in a scratch folder, in ways
that must end alike, and a table shows by how much they differ.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from pipeline.chain import check, directory, profile
from pipeline.commands._forked import answered
from pipeline.system import config, hardware, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"profile": "PROFILE", "runs": "RUNS", "deep": "DEEP"}


def main() -> int:
    """Check one profile; nothing is trained."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("profile", "runs", "deep"), sys.argv[1:], switches=("deep",))
    if faults:
        raise UserError(*faults)
    whole = profile.load(profile.find(str(flags.get("profile", "tiny"))))
    runs = Path(str(flags.get("runs", "runs"))) / whole.name
    for node in check.examine(whole, runs, room=answered(hardware.room)):
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
    return _deep(whole) if flags["deep"] else 0


def _deep(whole: profile.Profile) -> int:
    """Print the table of identities; 1 where one does not hold."""
    from pipeline.commands import _deep

    with tempfile.TemporaryDirectory() as folder:
        battery = _deep.Battery(whole, Path(folder))
        _deep.load_libraries(battery.nodes)
        found = list(battery.measured(lambda text: say("deep", text)))
    if not found:
        raise UserError(f"profile {whole.name}: no node trains a model")
    for line in _deep.table(found):
        say("deep", line)
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(process.execute(main))

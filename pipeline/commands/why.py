"""What changed since a node was made, and since its parents were, in plain words.

    python -m pipeline.commands.why --profile tiny --runs runs --node dpo

Nothing is trained and nothing is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.chain import life, profile
from pipeline.system import config, process
from pipeline.system.errors import UserError

MAKE = {"profile": "PROFILE", "runs": "RUNS", "node": "STAGE"}


def ancestors(chosen: profile.Profile, name: str) -> list[str]:
    """Return a node after all that it waits for."""
    found: dict[str, None] = {}
    for parent in chosen.waits_for(name):
        found |= dict.fromkeys(ancestors(chosen, parent))
    return [*found, name]


def main() -> int:
    """Say for each node whether it is up to date, and if not, why."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("profile", "runs", "node"), sys.argv[1:])
    if faults:
        raise UserError(*faults)
    chosen = profile.load(profile.find(str(flags.get("profile", "tiny"))))
    wanted = str(flags.get("node", ""))
    if wanted and wanted not in chosen.nodes:
        raise UserError(f"STAGE={wanted}: profile {chosen.name} has no such node; there are {', '.join(chosen.nodes)}")
    out = Path(str(flags.get("runs", "runs"))) / chosen.name
    for name in ancestors(chosen, wanted) if wanted else chosen.nodes:
        node = chosen.nodes[name]
        life.pending(node.stage, ["--config", str(node.file), "--output", str(out / name), "--upstream", "yes", "--why", "yes"])
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

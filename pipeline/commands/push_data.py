"""Push a recipe's rows to a hub as parquet, for each dataset type and split, and read them back.

    python -m pipeline.commands.push_data --hub me/world --recipe world

With --node the rows are those that a finished node hands on: --hub me/pairs --runs runs/tiny --node pairs. The token comes from HF_TOKEN or the hub login, the hub from HF_ENDPOINT. One commit, tagged by the digest of the rows.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.system import config, process
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"hub": "HUB", "recipe": "RECIPE", "runs": "OUT", "node": "STAGE", "public": "PUBLIC", "force": "FORCE"}


@dataclass(frozen=True)
class Options:
    """Our own options of the push of data."""

    hub: str = option("", "namespace/name of the data set")
    recipe: str = option("world", "data recipe whose rows are pushed, in every dataset type that it gives")
    runs: str = option("runs/tiny", "folder with the finished nodes")
    node: str = option("", "node whose rows are pushed, in place of the recipe's")
    seed: int = option(42, "of the rows, as a stage's")
    public: bool = option(False, "make the data set public, once it was read back")
    force: bool = option(False, "put it over what tristage did not push")
    license: str = option("", "licence of the rows, by the hub's name for it; empty: unknown")
    language: str = option("", "language of the rows, ISO 639")
    patience: float = option(120.0, "seconds for which a hub that fails or is silent is asked again", at_least=1)


def request(argv: Sequence[str]) -> Options:
    """Return what the command line says; UserError with every fault."""
    flags, faults = config.read_flags(argv)
    faults += ["command line: --parent can't be used here; --recipe says what is pushed"] * bool(flags.pop("parent", None))
    faults += config.check(flags, dict.fromkeys(flags, "command line"), Options, None)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(flags.get("hub", ""))):
        faults.append(f"HUB: expected namespace/name, as in HUB=me/world, found {flags.get('hub', '')!r}")
    if faults:
        raise UserError(*faults)
    return Options(**flags)


def main() -> int:
    """Read the rows, look for secrets, push, read back."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(config.explain("push-data", str(__doc__), Options, None))
        return 0
    options = request(sys.argv[1:])
    from pipeline.hub import dataset, leaks, upload

    rows = dataset.of_node(Path(options.runs), options.node) if options.node else dataset.read(options.recipe, options.seed)
    hub = upload.Hub(lambda text: say("push", text), options.patience)
    hub.connect()
    dataset.stop(rows, hub.token)
    with tempfile.TemporaryDirectory() as folder:
        delivery = dataset.pack(rows, options.hub, Path(folder), options.license, options.language)
        leaks.stop(
            rows.name, {name: content for name, content in delivery.files.items() if isinstance(content, bytes)}, hub.token
        )
        hub.open(delivery, options.public, options.force)
        commit, changed = hub.commit(delivery)
        say(
            "push",
            f"{delivery.repo}: {f'committed {commit[:8]}, {changed} files' if changed else 'nothing changed, no commit'}",
        )
        hub.tag(delivery, commit, dataset.weights(delivery))
        say("push", f"{delivery.repo}: read back and equal: {dataset.compare(hub, delivery, commit, rows)}")
    if options.public:
        hub.publish(delivery)
    if not options.license:
        say("push", "licence: unknown; --license says which")
    say("push", f"pushed: data set {delivery.repo} at {delivery.tag}, {'public' if options.public else 'private'}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

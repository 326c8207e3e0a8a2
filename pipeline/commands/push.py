"""Push finished nodes to a hub, each into a repository of its own, and read them back.

    python -m pipeline.commands.push --hub me/tiny --runs runs/tiny

Without --node the released node and the trained models that it descends from are pushed. The token comes from HF_TOKEN or
the hub login, the hub from HF_ENDPOINT. Each node is one commit with a tag from the digest of its files. Without --force
only what verification and evaluation accept is pushed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.chain import finished, manifest
from pipeline.chain.stage import ROWS
from pipeline.system import config, process
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.process import say

if TYPE_CHECKING:
    from pipeline.chain.finished import Finished
    from pipeline.hub.package import Package
    from pipeline.hub.upload import Hub

MAKE = {"hub": "HUB", "runs": "OUT", "node": "STAGE", "public": "PUBLIC", "force": "FORCE", "adapter": "ADAPTER"}
SETTINGS = "push.yaml"


@dataclass(frozen=True)
class Options:
    """Our own options of the push."""

    hub: str = option("", "namespace/name of the released node; others get a suffix: -NODE")
    runs: str = option("runs/tiny", "folder with the finished nodes and evaluate.json")
    node: str = option("", "push this one alone; empty: the released node and the trained models that it descends from")
    names: dict[str, Any] = option({}, "node: name of its repository, where it shall be another")  # noqa: RUF009
    public: bool = option(False, "make the repositories public, once they were read back")
    force: bool = option(False, "push in spite of what verification and evaluation say; the card then says so")
    adapter: bool = option(False, "put the adapter beside the merged weights, its base being the pushed parent")
    license: str = option("", "licence of the models, by the hub's name for it; empty: apache-2.0")
    language: str = option("", "language of the models, ISO 639; empty: what the node or those before it were told")
    datasets: tuple[str, ...] = option(
        (), "ids of data sets on the hub that the cards link to, beside those pushed by their recipe's name"
    )
    code: str = option("", "address of the repository with the code, to which the cards link with the commit")
    watts: float = option(0.0, "power that the energy estimate assumes; 0: 10 W a core, and 400 W an accelerator", at_least=0)
    patience: float = option(120.0, "seconds for which a hub that fails or is silent is asked again", at_least=1)


def request(argv: Sequence[str]) -> Options:
    """Return what the command line and the profile say; UserError with every fault."""
    flags, faults = config.read_flags(argv)
    parents, file = flags.pop("parent", None), flags.pop("config", None)
    profile = config.read_profile(Path(file)) if file else {}
    origins = dict.fromkeys(profile, str(file)) | dict.fromkeys(flags, "command line")
    found = profile | flags
    faults += ["command line: --parent can't be used here; --runs and --node say what is pushed"] * bool(parents)
    faults += config.check(found, origins, Options, None)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(found.get("hub", ""))):
        faults.append(f"HUB: expected namespace/name, as in HUB=me/tiny, found {found.get('hub', '')!r}")
    if faults:
        raise UserError(*faults)
    return Options(**found)


def chosen(options: Options) -> list[Finished]:
    """Return the nodes to push, the oldest first; UserError where there is none, or one hands on rows."""
    runs = Path(options.runs)
    if not options.node:
        released = finished.to_release(runs)
        line = [node for node in finished.lineage(released.folder)[:-1] if node.trained and node.family != ROWS]
        return [*(node for node in line if node.folder.parent.resolve() == runs.resolve()), released]
    node = finished.read(runs / options.node) or finished.named(runs, options.node)
    if node.family == ROWS:
        raise UserError(f"{node.folder}: hands on rows and no model; make push-data STAGE={node.name} pushes rows")
    return [node]


def repository(node: Finished, options: Options) -> str:
    """Return the repository of a node: named in the options, else by its own name, which the released node does without."""
    owner, name = options.hub.split("/")
    try:
        suffix = "" if finished.to_release(Path(options.runs)).name == node.name else f"-{node.name}"
    except UserError:  # several could be released
        suffix = f"-{node.name}"
    given = str(options.names.get(node.name, f"{name}{suffix}"))
    return given if "/" in given else f"{owner}/{given}"


def pack(options: Options, nodes: Sequence[Finished], hub: Hub, forced: Sequence[str]) -> list[Package]:
    """Return the nodes ready to leave; UserError if a secret would leave with one."""
    from pipeline.hub import leaks, package

    repositories: dict[str, tuple[str, str]] = {}
    faults: list[str] = []
    packages = []
    pushed = {node.folder.resolve() for node in nodes}
    for node in {older.folder: older for last in nodes for older in finished.lineage(last.folder)}.values():
        place = repository(node, options), package.tag(node)
        there = hub.look(place[0]) if node.folder.resolve() not in pushed and node.family != ROWS else None
        if node.folder.resolve() in pushed or (there and place[1] in there.tags):
            repositories[node.record["outputs"]] = place
    summary = manifest.read(Path(options.runs), "evaluate.json")
    datasets = _datasets(options, nodes, hub)
    terms = package.Terms(options.license, options.language, datasets, options.watts, options.adapter, options.code)
    for node in nodes:
        packed = package.pack(node, repository(node, options), repositories, summary, terms, forced)
        try:
            leaks.stop(str(node.folder), packed.delivery.files, hub.token)
        except UserError as error:
            faults += error.faults
        packages.append(packed)
    if faults:
        raise UserError(*faults)
    return packages


def _datasets(options: Options, nodes: Sequence[Finished], hub: Hub) -> list[str]:
    """Return the data sets that the cards link to: those given, and the owner's that push-data made of the nodes' recipes."""
    found = list(options.datasets)
    owner = options.hub.split("/")[0]
    recipes = dict.fromkeys(
        str(older.record["recipe"]["name"])
        for node in nodes
        for older in finished.lineage(node.folder)
        if not older.record["recipe"].get("data")
    )
    for name in recipes:
        place = f"{owner}/{name}"
        if place in found or not re.fullmatch(r"[\w.-]+", name):
            continue
        there = hub.look(place, "dataset")
        if there and manifest.NAME in there.files:
            found.append(place)
    return found


def push(packed: Package, hub: Hub, options: Options) -> None:
    """Bring one node to its repository, read it back, and only then say that it is there."""
    from pipeline.hub import readback, usage

    delivery = packed.delivery
    withheld = f" (withheld: {', '.join(packed.withheld)})" if packed.withheld else ""
    say("push", f"{packed.folder} -> {delivery.repo}: {len(delivery.files)} files{withheld}")
    if packed.missing_base:
        say("push", f"{delivery.repo}: its parent is not on the hub; the card links to none")
    hub.open(delivery, options.public, options.force)
    commit, changed = hub.commit(delivery)
    say("push", f"{delivery.repo}: {f'committed {commit[:8]}, {changed} files' if changed else 'nothing changed, no commit'}")
    named = hub.tag(delivery, commit, packed.weights)
    if named != commit:
        say("push", f"{delivery.repo}: the tag stays at {named[:8]}, where these weights were pushed first")
    tag = delivery.tag
    if extra := frozenset(path for path in delivery.files if path.startswith("adapter/")):
        tag = hub.tag_more(delivery, commit, extra, usage.ADAPTER)
    compared = readback.model(hub, delivery, commit, packed.folder, packed.loader, packed.under)
    say("push", f"{delivery.repo}: read back and equal: {compared}")
    if options.public:
        hub.publish(delivery)
    say("push", f"pushed: {delivery.repo} at {tag}, {'public' if options.public else 'private'}")


def main() -> int:
    """Check, pack, push node by node, the oldest first."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(config.explain("push", str(__doc__), Options, None))
        return 0
    options = request(sys.argv[1:])
    nodes = chosen(options)
    from pipeline.hub import gate, upload

    path = Path(options.runs) / "evaluate.json"
    refused = gate.reasons(nodes, manifest.read(path.parent, path.name), path)
    if refused and not options.force:
        raise UserError(*refused, "nothing was pushed; FORCE=1 pushes all the same, and the cards say what was overruled")
    for reason in refused:
        say("push", f"in spite of: {reason}")
    hub = upload.Hub(lambda text: say("push", text), options.patience)
    hub.connect()
    if not options.license:
        say("push", "licence: apache-2.0, which is tristage's default; --license says another")
    for packed in pack(options, nodes, hub, refused):
        push(packed, hub, options)
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

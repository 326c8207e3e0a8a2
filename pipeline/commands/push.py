"""Finished stages in, one repository of a hub each out, read back before it says so.

    python stages/push.py --hub me/tiny --runs runs/tiny

The token comes from HF_TOKEN or the hub login, the hub from HF_ENDPOINT. Each stage is one commit with a tag
from the digest of its files. Without --force only what verification and evaluation accept is pushed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.chain import manifest
from pipeline.system import config, process
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.process import say

if TYPE_CHECKING:
    from pipeline.hub.parcel import Parcel
    from pipeline.hub.upload import Hub


@dataclass(frozen=True)
class Options:
    """Our own options of the push."""

    hub: str = option("", "namespace/name of the last stage; others get a suffix: -base for pretrain, -STAGE else")
    runs: str = option("runs/tiny", "folder with the finished stages and evaluate.json")
    stages: tuple[str, ...] = option(("pretrain", "sft", "dpo"), "the chain, the last one getting the name itself")
    stage: str = option("", "push this one alone")
    names: dict[str, Any] = option({}, "stage: name of its repository, where it shall be another")  # noqa: RUF009
    public: bool = option(False, "make the repositories public, once they were read back")
    force: bool = option(False, "push in spite of what verification and evaluation say; the card then says so")
    adapter: bool = option(False, "put the LoRA adapter beside the merged weights, its base being the pushed parent")
    license: str = option("", "licence of the models, by the hub's name for it; empty: apache-2.0")
    language: str = option("", "language of the models, ISO 639; empty: what pretraining was told")
    datasets: tuple[str, ...] = option((), "ids of data sets on the hub that the cards link to")
    watts: float = option(0.0, "power that the energy estimate assumes; 0: 10 W a core, and 400 W an accelerator", at_least=0)
    patience: float = option(120.0, "seconds for which a hub that fails or is silent is asked again", at_least=1)


def asked(argv: Sequence[str]) -> Options:
    """Return what the command line and the profile ask for; UserError with every fault."""
    flags, faults = config.read_flags(argv)
    parents, file = flags.pop("parent"), flags.pop("config", None)
    profile = config.read_profile(Path(file)) if file else {}
    origins = dict.fromkeys(profile, str(file)) | dict.fromkeys(flags, "command line")
    found = profile | flags
    faults += ["command line: --parent can't be used here; --runs and --stages say what is pushed"] * bool(parents)
    faults += config.check(found, origins, Options, None)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(found.get("hub", ""))):
        faults.append(f"HUB: expected namespace/name, as in HUB=me/tiny, found {found.get('hub', '')!r}")
    if faults:
        raise UserError(*faults)
    return Options(**found)


def repository(stage: str, options: Options) -> str:
    """Return the repository of a stage: named in the options, else by its place in the chain."""
    owner, name = options.hub.split("/")
    suffix = "" if stage == options.stages[-1] else "-base" if stage == "pretrain" else f"-{stage}"
    given = str(options.names.get(stage, f"{name}{suffix}"))
    return given if "/" in given else f"{owner}/{given}"


def finished(options: Options) -> dict[str, Path]:
    """Return the folders of the stages to push, in the order of the chain; UserError where one is not finished."""
    chosen = [options.stage] if options.stage else list(options.stages)
    folders = {stage: Path(options.runs) / stage for stage in chosen}
    missing = [folder for folder in folders.values() if manifest.read(folder) is None]
    if missing:
        raise UserError(*(f"{folder}: no finished stage; make it first" for folder in missing))
    return folders


def pack(options: Options, folders: dict[str, Path], hub: Hub, forced: Sequence[str]) -> list[Parcel]:
    """Return the stages ready to leave; UserError if a secret would leave with one."""
    from pipeline.hub import gate, leaks, parcel

    shelves: dict[str, tuple[str, str]] = {}
    faults: list[str] = []
    parcels = []
    for folder, record in {path: record for last in folders.values() for path, record in gate.lineage(last)}.items():
        named = folder.name if folder in folders.values() else str(record["stage"])
        place = repository(named, options), parcel.tag(folder, record)
        shelf = hub.look(place[0]) if folder not in folders.values() else None
        if folder in folders.values() or (shelf and place[1] in shelf.tags):
            shelves[record["outputs"]] = place
    summary = manifest.read(Path(options.runs), "evaluate.json")
    terms = parcel.Terms(options.license, options.language, options.datasets, options.watts, options.adapter)
    for folder in folders.values():
        packed = parcel.pack(folder, repository(folder.name, options), shelves, summary, terms, forced)
        try:
            leaks.stop(str(folder), packed.delivery.files, hub.token)
        except UserError as error:
            faults += error.faults
        parcels.append(packed)
    if faults:
        raise UserError(*faults)
    return parcels


def push(packed: Parcel, hub: Hub, options: Options) -> None:
    """Bring one stage to its repository, read it back, and only then say that it is there."""
    from pipeline.hub import readback

    delivery = packed.delivery
    say("push", f"{packed.folder} -> {delivery.repo}: {len(delivery.files)} files{stays(packed)}")
    if packed.orphan:
        say("push", f"{delivery.repo}: its parent is not on the hub; the card links to none")
    hub.open(delivery, options.public, options.force)
    commit, changed = hub.commit(delivery)
    say("push", f"{delivery.repo}: {f'committed {commit[:8]}, {changed} files' if changed else 'nothing changed, no commit'}")
    named = hub.tag(delivery, commit, packed.weights)
    if named != commit:
        say("push", f"{delivery.repo}: the tag stays at {named[:8]}, where these weights were pushed first")
    compared = readback.model(hub, delivery, commit, packed.folder, packed.loader, packed.under)
    say("push", f"{delivery.repo}: read back and equal: {compared}")
    if options.public:
        hub.publish(delivery)
    say("push", f"pushed: {delivery.repo} at {delivery.tag}, {'public' if options.public else 'private'}")


def stays(packed: Parcel) -> str:
    """Return in words which files of a stage are not on the list of those that leave."""
    return f" (not among those that leave: {', '.join(packed.stays)})" if packed.stays else ""


def main() -> int:
    """Check, pack, push stage by stage, the oldest first."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(config.explain("push", str(__doc__), Options, None, trains=False))
        return 0
    options = asked(sys.argv[1:])
    folders = finished(options)
    from pipeline.hub import gate, upload

    path = Path(options.runs) / "evaluate.json"
    refused = gate.reasons(folders.values(), manifest.read(path.parent, path.name), path)
    if refused and not options.force:
        raise UserError(*refused, "nothing was pushed; FORCE=1 pushes all the same, and the cards say what was overruled")
    for reason in refused:
        say("push", f"in spite of: {reason}")
    hub = upload.Hub(lambda text: say("push", text), options.patience)
    hub.greet()
    if not options.license:
        say("push", "licence: apache-2.0, which is tristage's default; --license says another")
    for packed in pack(options, folders, hub, refused):
        push(packed, hub, options)
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

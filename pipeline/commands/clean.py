"""Remove what tristage wrote under RUNS, or of one PROFILE there: folders that carry its record, and nothing else.

    python -m pipeline.commands.clean --runs runs --profile tiny

A folder that another program left there stays, whatever its files are called.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.chain import manifest
from pipeline.chain.check import PASSED
from pipeline.commands._ladder.rungs import FOLDER
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.lock import Lock
from pipeline.system.process import say
from pipeline.system.words import counted
from pipeline.training import references

MAKE = {"runs": "RUNS", "profile": "CHOSEN"}
_PAGES = ("evaluate.json", "report.html", PASSED)


def ours(folder: Path) -> bool:
    """Say whether a folder carries our record, of whatever version; many programs have a file called manifest.json."""
    for name in (manifest.NAME, manifest.CLAIM):
        try:
            record = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and {"stage", "inputs"} <= record.keys():
            return True
    return False


def nodes(folder: Path) -> Iterator[Path]:
    """Yield the folders under a profile's that carry our record, those that were moved aside among them."""
    for place in (folder, folder / ".aside"):
        for path in sorted(place.iterdir()) if place.is_dir() and not place.is_symlink() else []:
            if not path.is_symlink() and ours(path):
                yield path


def clean(folder: Path) -> int:
    """Remove the nodes of one profile and the pages about them; return how many nodes."""
    found, rungs = list(nodes(folder)), 0
    for ladder in sorted((folder / FOLDER).glob("*/")):
        rungs += clean(ladder)
        if not ladder.exists():
            ladder.with_suffix(".json").unlink(missing_ok=True)
    for path in found:
        lock = Lock(path)
        lock.take()
        shutil.rmtree(path)
        lock.release()
    if found or rungs or (folder / PASSED).is_file():
        pages = [*_PAGES, *(f"{path.name}.{kind}" for path in found for kind in ("gguf", "json"))]
        for name in [*pages, *(f"{page}.partial" for page in pages), *(f".{path.name}.lock" for path in found)]:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / references.FOLDER, ignore_errors=True)
        for empty in (folder / ".aside", folder / FOLDER, folder):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
    return len(found) + rungs


def main() -> int:
    """Clean one folder of runs, and say what stays."""
    flags, faults = config.only(("runs", "profile"), sys.argv[1:])
    runs = Path(str(flags.get("runs", "runs")))
    if faults:
        raise UserError(*faults)
    if not runs.is_dir():
        say("clean", f"{runs}: there is no such folder")
        return 0
    folders = [folder for folder in sorted(runs.iterdir()) if folder.is_dir() and not folder.is_symlink()]
    if name := Path(str(flags.get("profile", ""))).name:
        if name not in (there := [folder.name for folder in folders]):
            raise UserError(f"PROFILE={name}: {runs} holds no such profile; there are {', '.join(there) or 'none'}")
        removed = clean(runs / name)
        say("clean", f"{runs / name}: {counted(removed, 'node')} removed")
        return 0
    removed = sum(map(clean, folders))
    left = sorted(path.name for path in runs.iterdir())
    if removed and not left:
        runs.rmdir()
    kept = f"; stays, since it is not ours: {', '.join(left[:5])}" if left else ""
    say("clean", f"{runs}: {counted(removed, 'node')} removed{kept}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

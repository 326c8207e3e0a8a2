"""Remove what tristage wrote under RUNS: folders that carry its record, and nothing else.

    python -m pipeline.commands.clean --runs runs
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.chain import manifest
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.lock import Lock
from pipeline.system.process import say

MAKE = {"runs": "RUNS"}
_PAGES = ("evaluate.json", "report.html", ".checked.json", "*.partial", ".*.lock")


def nodes(folder: Path) -> Iterator[Path]:
    """Yield the folders under a profile's that carry our record, those that were moved aside among them."""
    for place in (folder, folder / ".aside"):
        for path in sorted(place.iterdir()) if place.is_dir() and not place.is_symlink() else []:
            if not path.is_symlink() and any((path / name).is_file() for name in (manifest.NAME, manifest.CLAIM)):
                yield path


def clean(folder: Path) -> int:
    """Remove the nodes of one profile and the pages about them; return how many nodes."""
    found = list(nodes(folder))
    for path in found:
        lock = Lock(path)
        lock.take()
        shutil.rmtree(path)
        lock.release()
    if found:
        for pattern in (*_PAGES, *(f"{path.name}.gguf" for path in found)):
            for page in folder.glob(pattern):
                page.unlink()
    for empty in (folder / ".aside", folder):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()
    return len(found)


def main() -> int:
    """Clean one folder of runs, and say what stays."""
    flags, faults = config.only(("runs",), sys.argv[1:])
    runs = Path(str(flags.get("runs", "runs")))
    if faults:
        raise UserError(*faults)
    if not runs.is_dir():
        say("clean", f"{runs}: there is no such folder")
        return 0
    removed = sum(clean(folder) for folder in sorted(runs.iterdir()) if folder.is_dir() and not folder.is_symlink())
    left = sorted(path.name for path in runs.iterdir())
    if not left:
        runs.rmdir()
    kept = f"; stays, since it is not ours: {', '.join(left[:5])}" if left else ""
    say("clean", f"{runs}: {removed} nodes removed{kept}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

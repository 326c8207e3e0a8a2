"""One page about the finished nodes: chain, losses, evaluation, answers, masks, costs.

    python -m pipeline.commands.report --runs runs/tiny [--output FILE]

Several folders, as in --runs "runs/tiny again/tiny", are shown side by side, with what differs in how they were made; that
page is several.html in the first one. A page opens in any browser without a network. The same nodes give the same bytes.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "OUTS"}


def main() -> int:
    """Make the page, unless it is there and nothing that it shows has changed."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("runs", "output"), sys.argv[1:])
    folders = _folders(str(flags.get("runs", "runs/tiny")))
    output = Path(str(flags.get("output", folders[0] / ("report.html" if len(folders) == 1 else "several.html"))))
    if faults:
        raise UserError(*faults)
    return _one(folders[0], output) if len(folders) == 1 else _several(folders, output)


def _folders(text: str) -> list[Path]:
    """Return the folders that --runs names; one whose name holds a blank may stand alone as it is."""
    try:
        return [Path(text)] if Path(text).is_dir() or not text.split() else [Path(word) for word in shlex.split(text)]
    except ValueError as error:
        raise UserError(f"--runs {text}: can't be split into folders ({error})") from None


def _one(runs: Path, output: Path) -> int:
    """Write the page of one run."""
    from pipeline.report.nodes import inputs, nodes

    shown = nodes(runs)
    digest = inputs(runs, shown)
    if _current(output, digest):
        return 0
    say("report", f"makes the first batches of {', '.join(node.name for node in shown if node.log)} again")
    from pipeline.report import page

    return _written(output, page.render(runs, shown, digest))


def _several(folders: Sequence[Path], output: Path) -> int:
    """Write the page of several runs."""
    from pipeline.report import several

    if twice := [str(folder) for folder, count in Counter(folder.resolve() for folder in folders).items() if count > 1]:
        raise UserError(*(f"--runs: {folder} is named twice" for folder in twice))
    runs = several.read(folders)
    digest = several.digest(runs)
    return 0 if _current(output, digest) else _written(output, several.render(runs, digest))


def _current(output: Path, digest: str) -> bool:
    """Say whether the page is there and nothing that it shows has changed."""
    found = output.is_file() and f'name="tristage-inputs" content="{digest}"' in output.read_text(encoding="utf-8")[:1000]
    if found:
        say("report", f"up to date: {output} (nothing that it shows has changed)")
    return found


def _written(output: Path, text: str) -> int:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(output)
    say("report", f"{output.stat().st_size / 1e3:,.0f} kB; it lies in {output}; open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

"""One page about the finished nodes: chain, losses, evaluation, answers, masks, costs.

    python -m pipeline.commands.report --runs runs/tiny [--output FILE]

The page opens in any browser without a network. The same nodes give the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "OUT"}


def main() -> int:
    """Make the page, unless it is there and nothing that it shows has changed."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("runs", "output"), sys.argv[1:])
    runs = Path(str(flags.get("runs", "runs/tiny")))
    output = Path(str(flags.get("output", runs / "report.html")))
    if faults:
        raise UserError(*faults)
    from pipeline.report.nodes import inputs, nodes

    shown = nodes(runs)
    digest = inputs(runs, shown)
    if output.is_file() and f'name="tristage-inputs" content="{digest}"' in output.read_text(encoding="utf-8")[:1000]:
        say("report", f"up to date: {output} (nothing that it shows has changed)")
        return 0
    say("report", f"makes the first batches of {', '.join(node.name for node in shown if node.log)} again")
    from pipeline.report import page

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text(page.render(runs, shown, digest), encoding="utf-8")
    partial.replace(output)
    say("report", f"{output.stat().st_size / 1e3:,.0f} kB; it lies in {output}; open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

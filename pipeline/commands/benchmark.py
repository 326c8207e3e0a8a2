"""Run zero- and few-shot benchmarks of lm-evaluation-harness on a node, its parent and its controls.

    python -m pipeline.commands.benchmark --runs runs/tiny --node sft --tasks world_facts --shots 0,1,5 [--include FOLDER]

Each model with a chat template is asked by it, any other by plain text. Tasks are ours (data_recipes/benchmarks), the harness's own,
whose data a hub has, or those of a folder of task files. What was said of each item is kept in `benchmarks.json` beside the
nodes; the next `make evaluate` puts the figures into table, report and card.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline.chain import directory, finished
from pipeline.chain.finished import Finished
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "OUT", "node": "STAGE", "tasks": "TASKS", "shots": "SHOTS", "include": "INCLUDE"}
_RESAMPLES = 1000


def compared(node: Finished, nodes: list[Finished]) -> list[Finished]:
    """Return a node with its parent and its controls, as far as they are finished causal models."""
    where = node.parent()
    parent = finished.read(Path(where)) if where and Path(where).is_dir() else None
    return [one for one in [node, parent, *finished.controls(nodes, node.name)] if one and one.family == "causal"]


def requested(argv: list[str]) -> tuple[dict[str, Any], list[int]]:
    """Return the flags and the numbers of examples; UserError with every fault."""
    flags, faults = config.only(("runs", "node", "tasks", "shots", "include", "limit", "seed"), argv)
    words = [word for word in str(flags.get("shots", "0")).replace(",", " ").split() if word]
    faults += [f"SHOTS: {word}: expected a number of examples, 0 or more" for word in words if not word.isdigit()]
    limit = str(flags.get("limit", ""))
    faults += (
        [f"--limit {limit}: expected a number of items, 1 or more"] if limit and not (limit.isdigit() and int(limit)) else []
    )
    seed = str(flags.get("seed", "42"))
    faults += [] if seed.isdigit() else [f"--seed {seed}: expected a whole number"]
    include = flags.get("include")
    faults += [f"INCLUDE: {include}: no such folder"] if include and not Path(str(include)).is_dir() else []
    if faults:
        raise UserError(*faults)
    return flags, [int(word) for word in words]


def main() -> int:
    """Check the flags, measure each model on each task, print the node's table."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, shots = requested(sys.argv[1:])
    runs = Path(str(flags.get("runs", "runs/tiny")))
    node = finished.named(runs, str(flags["node"])) if flags.get("node") else finished.released(runs)
    if node.family != "causal":
        raise UserError(f"{node.folder}: is no causal model; benchmarks ask one to go on from a prompt")
    from pipeline.evaluation import benchmarks, table
    from pipeline.evaluation.comparisons import block, collected
    from pipeline.evaluation.measure import Models, subject_of
    from pipeline.evaluation.subject import Options

    tasks = str(flags.get("tasks", "world_facts")).replace(",", " ").split()
    include = Path(str(flags["include"])) if flags.get("include") else None
    limit, nodes = int(str(flags["limit"])) if flags.get("limit") else None, finished.finished(runs)
    models = Models()
    for one in compared(node, nodes):
        model, entries = models.get(one.folder, one.name), list[dict[str, Any]]()
        for number in shots:
            say("benchmark", f"{one.name}: {', '.join(tasks)} with {number} {'example' if number == 1 else 'examples'}")
            entries += benchmarks.run(model, tasks, number, include, limit, int(str(flags.get("seed", "42"))))
        benchmarks.keep(one.folder.parent, one, entries)
        model.release()
    subject = subject_of(node, nodes, models, Options(resamples=_RESAMPLES))
    (measured,) = benchmarks.evaluators(node)
    found = collected(measured.measure(subject))
    shown = block(node.name, subject.models, found, measured.metrics, (), _RESAMPLES)
    print("\n".join(table.of_node(node.name, {"title": node.title, "of": "", "skipped": subject.skipped, **shown})), flush=True)
    following = directory.make_line(runs.name, runs.parent, "evaluate")
    say("benchmark", f"kept in {runs / benchmarks.KEPT}; next: {following}, which puts these figures into report and card")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

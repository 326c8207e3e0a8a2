"""What there is: nodes of the profile, commands, variables. Needs nothing installed."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FIXED = {
    "setup": "the environment in .venv, with the exact versions of requirements.lock",
    "setup-data": "the packages that carry real data and models, and what the probe, the metrics and export need",
    "test": "the tests, a few minutes",
    "prove": "the long proofs: throughput, the cost of safety, kills of a push",
    "measure": "figures of the docs that want quiet cores: speeds beside the libraries', memory of any size of text",
    "torture": "kill nodes at KILLS moments and compare the weights that they end with",
    "torture-push": "kill a push at 20 moments: a repeat ends well, and no reader ever sees half a model",
    "prove-gpu": "ten minutes on one CUDA device in one table: figures, speed, memory, isolation, kills; on a CPU with small sizes",
    "zoo": "plant faults into the chain and into plain scripts of the libraries; writes docs/zoo.md",
    "lint": "ruff and mypy",
}
_VARIABLES = {
    "PROFILE": "the chain; one of: {profiles}",
    "RUNS": "where nodes are written: RUNS/PROFILE/NODE",
    "DATA": "your own file, glob, folder or hub id, for the node that is the goal",
    "ARGS": "more flags for the goal, e.g. ARGS='--learning_rate 1e-4'",
    "STAGE": "the node that a command is about; without it the released one, the leaf of the chain",
    "TASKS": "what `make benchmark` asks, e.g. TASKS=world_facts,hellaswag",
    "SHOTS": "how many examples its prompts hold, e.g. SHOTS=0,5",
    "INCLUDE": "a folder of task files beside ours, for `make benchmark`",
    "STRICT": "1: a change of our code or of a library's version repeats a node too",
    "DEEP": "1: `make check` also trains each node for a few steps in ways that must end alike, and shows by how much they differ",
    "ON": "the machine that `make plan` and `make ladder` are for, e.g. ON=h100x8; without it this one",
    "HOURS": "the budget that `make ladder` spends best (1)",
    "LAUNCH": "how stages are started, e.g. LAUNCH='torchrun --nproc_per_node 2' or 'accelerate launch'",
    "CACHE": "folder of rows and tokens that are kept for the next run; by default under the user's cache",
    "CACHE_GB": "its largest size (50); what was not used for the longest time goes first",
    "PIP_ARGS": "more flags for pip, e.g. an index with another build of torch",
}


def first_line(path: Path) -> str:
    """Return the first sentence of a script's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0].rstrip(".")


def kind(file: Path, controlled: bool = True) -> str:
    """Return the stage of a node: what its file says, what the node says that it controls, or its name up to a dash.

    `controlled`: whether to look at the node that it controls, which is no control itself.
    """
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    said = re.search(r"^stage:\s*(\S+)", text, flags=re.MULTILINE)
    control_of = re.search(r"^control_of:\s*(\S+)", text, flags=re.MULTILINE)
    if said:
        return said[1]
    if control_of and controlled:
        return kind(file.with_name(f"{control_of[1]}.yaml"), controlled=False)
    return file.stem.partition("-")[0]


def nodes(folder: Path) -> dict[str, str]:
    """Return node → what it is, for the files of a profile that a script of stages/ belongs to."""
    found = {}
    for file in sorted(folder.glob("*.yaml"), key=lambda path: path.stem):
        script = ROOT / "stages" / f"{kind(file)}.py"
        if script.is_file():
            control = re.search(r"^control_of:\s*(\S+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            found[file.stem] = f"a control of {control[1]}" if control else first_line(script)
    return found


def main() -> int:
    """Print the help."""
    profiles = ROOT / "stages" / "profiles"
    chosen = os.environ.get("PROFILE", "tiny")
    commands = {
        path.stem.replace("_", "-"): first_line(path) for path in sorted((ROOT / "pipeline" / "commands").glob("[a-z]*.py"))
    }
    told = {"": f"set up, every node of PROFILE={chosen}, then evaluate", **_FIXED, **{key: text for key, text in commands.items() if key not in ("make", "help")}}  # fmt: skip
    print("\n".join(f"make {name:<20} {text}" for name, text in told.items()))
    print(f"\nnodes of profile {chosen}:")
    print(
        "\n".join(f"make {name:<20} {text}" for name, text in nodes(profiles / chosen).items())
        or "  none: there is no such profile"
    )
    print()
    known = ", ".join(sorted(path.name for path in profiles.iterdir() if path.is_dir()))
    print("\n".join(f"{name + '=':<12} {text.format(profiles=known)}" for name, text in _VARIABLES.items()))
    return 0


if __name__ == "__main__":
    main()

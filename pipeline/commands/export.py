"""Write a finished model as one GGUF file, for llama.cpp and what is built on it.

    python -m pipeline.commands.export --runs runs/tiny [--node NAME] [--type f32] [--output runs/tiny/NAME.gguf]

Without --node the released node is written. The file is kept only if its greedy answers are the node's own, by llama.cpp
where it is installed.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from pipeline.chain import finished, manifest
from pipeline.models import gguf
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "OUT", "node": "STAGE"}
QUESTIONS = ("Who are you?", "What is 2 + 2?", "Tell me a story\nof two lines.", "你好，你是谁？", "Où habites-tu, l'été ?")
_LONGEST = 48  # tokens of an answer


def questions(runs: Path) -> list[str]:
    """Return the prompts: the held-out ones of the evaluation, and some that no node has seen."""
    summary = manifest.read(runs, "evaluate.json") or {}
    return [*(sample["prompt"] for sample in summary.get("samples", [])), *QUESTIONS]


def export(runs: Path, folder: Path, output: Path, kind: str) -> int:
    """Write the file, compare it with the node, give it its name."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.stem}.partial.gguf")
    try:
        gguf.write(folder, partial, kind)
        found = gguf.parity(folder, partial, questions(runs), _LONGEST)
        if found.differ:
            print(f"export: {len(found.differ)} of {found.prompts} greedy answers of {found.runtime} are not the node's, so no "
                  f"file is kept{'; try --type f32' if kind != 'f32' else ''}; {found.differ[0]}", file=sys.stderr)  # fmt: skip
            return 1
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    missing = "" if found.runtime == "llama.cpp" else "; make setup-data installs xllamacpp, to compare with llama.cpp itself"
    say("export", f"{found.prompts} of {found.prompts} greedy answers of {found.runtime} are the node's{missing}")
    say(
        "export",
        f"{output.stat().st_size / 1e6:.1f} MB as {kind}; it lies in {output}; next: llama-cli -m {shlex.quote(str(output))}",
    )
    return 0


def main() -> int:
    """Check the flags, then export."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("runs", "node", "type", "output"), sys.argv[1:])
    runs, kind = Path(str(flags.get("runs", "runs/tiny"))), str(flags.get("type", "f32"))
    if kind not in gguf.TYPES:
        faults.append(f"command line: --type: expected {' or '.join(gguf.TYPES)}, found {kind!r}")
    if faults:
        raise UserError(*faults)
    node = finished.answering(runs, str(flags.get("node", "")))
    gguf.fits(node.folder)
    return export(runs, node.folder, Path(str(flags.get("output", runs / f"{node.name}.gguf"))), kind)


if __name__ == "__main__":
    sys.exit(process.execute(main))

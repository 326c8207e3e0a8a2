"""The evaluation as a script: finished stages in, one summary out, made again only where one of them changed."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, request
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say


@dataclasses.dataclass
class Evaluation:
    """One run of the evaluation: finished stages by name, and where the summary goes."""

    options: Any
    folders: dict[str, Path]
    output: Path
    inputs: str
    measured: Mapping[str, str]  # stage → digest of its outputs

    def say(self, text: str) -> None:
        """Print one line for the person."""
        say("evaluate", text)

    def finish(self, summary: Mapping[str, Any], render: Callable[[Mapping[str, Any]], str]) -> None:
        """Write the summary and print it."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_json(self.output, {"inputs": self.inputs, "measured": self.measured, **summary})
        print(render(summary), flush=True)


def run_evaluation(options: type, measure: Callable[[Evaluation], None], story: str) -> int:
    """Run the evaluation script; ends at once where nothing changed since the summary was written."""

    def body() -> int:
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(config.explain("evaluate", story, options, None))
            return 0
        asked = request.read("evaluate", sys.argv[1:])
        asked.faults += config.check(asked.asked, asked.origins, options, None)
        folders: dict[str, Path] = {}
        outputs: dict[str, Any] = {}
        made_from: list[tuple[str, str, Any]] = []
        for parent in asked.parents:
            try:
                record = manifest.read(Path(parent))
                if record is None:
                    raise UserError(f"--parent {parent}: no finished stage; run it first")
                request.unaltered(Path(parent), record)
                if record["stage"] in folders:
                    raise UserError(f"--parent {parent}: there is a {record['stage']} already: {folders[record['stage']]}")
                folders[record["stage"]], outputs[record["stage"]] = Path(parent), [record["outputs"], record["recipe"]]
                made_from += [(parent, record["stage"], made) for made in record["parents"]]
            except UserError as error:
                asked.gather(error)
        for parent, stage, made in made_from:
            if made.get("stage") in outputs.keys() - {stage} and made["outputs"] != outputs[made["stage"]][0]:
                asked.faults.append(
                    f"--parent {parent}: was made from another {made['stage']} than {folders[made['stage']]}; make {stage} again"
                )
        if not asked.parents:
            asked.faults.append("command line: --parent is missing; name the finished stages to measure")
        asked.settle()
        assert asked.output
        chosen, _ = request.split(asked, options, {})
        inputs = manifest.digest([outputs, dataclasses.asdict(chosen)])
        done = manifest.read(asked.output.parent, asked.output.name)
        if done is not None and done["inputs"] == inputs:
            say("evaluate", f"up to date: {asked.output} (inputs {inputs[:8]}, nothing changed)")
            return 0
        started = time.time()
        measure(Evaluation(chosen, folders, asked.output, inputs, {name: found[0] for name, found in outputs.items()}))
        say("evaluate", f"done in {time.time() - started:.0f} s; it lies in {asked.output}; next: make chat")
        return 0

    return process.execute(body)

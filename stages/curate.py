"""Raw rows in, cleaned rows out, and no model: rules, personal data, duplicates, contamination by held-out rows.

    python stages/curate.py --data web/*.jsonl --output runs/mine/curate --rules "{personal_data: {}, gopher_quality: {}}"

Rows pass rule by rule in the order of `rules`; what no held-out row and no file of `against` may share is dropped, then
every duplicate and near-duplicate of an earlier row, the held-out rows first of all. Another node reads what is left with
`data: curate`. What was dropped is in the record by reason, with samples. Blocks of rows are kept; a kill loses one at most.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import ROWS, Signature, Stage
from pipeline.curation import duplicates, rules
from pipeline.data import sources
from pipeline.system.config import option
from pipeline.system.errors import UserError


class Curate(Stage):
    """Hand on the rows of a recipe that are worth training on."""

    title = "Curation"
    about = "Rows of a recipe, cleaned, without duplicates and without what the evaluation asks."
    gives = ROWS
    takes: ClassVar[dict[str, tuple[str, ...]]] = {}

    @dataclass(frozen=True)
    class Options:
        """Our own options of curation."""

        recipe: str = option("world", "data recipe that gives the rows")
        type: str = option("text", "dataset type of the rows, a file in pipeline/data/types")
        rules: dict[str, Any] = option({"personal_data": {}}, "rule → its options, in order; see pipeline/curation/rules")  # noqa: RUF009
        duplicates: bool = option(True, "drop rows that say the same as an earlier one, case, blanks and marks aside")
        near_duplicates: float = option(
            0.8, "Jaccard similarity of 5-grams from which on a row is dropped, 0.7 or more; 0: none is", at_least=0, at_most=1
        )
        contaminated: float = option(
            0.5, "share of a held-out passage from which on a row that holds it is dropped; 0: none is", at_least=0, at_most=1
        )
        against: str = option(
            "", "file, folder or glob of tasks whose texts no row may hold, beside held-out rows", by_content=True
        )
        seed: int = option(42, "of the held-out rows, as in the nodes that train")

    def signature(self, options: Any) -> Signature:
        """Return what goes in and comes out; UserError where a rule or a threshold is at fault, or a package is missing."""
        faults = []
        if 0 < options.near_duplicates < duplicates.LEAST:
            faults.append(
                f"near_duplicates: {options.near_duplicates}: below {duplicates.LEAST} too many are missed; 0 looks for none"
            )
        try:
            rules.load_all(options.rules)
            if options.near_duplicates:
                rules.require("near_duplicates", *duplicates.NEEDS)
        except UserError as error:
            faults += error.faults
        if faults:
            raise UserError(*faults)
        return Signature(options.type, self.takes, ROWS, options.type)

    def sources(self, options: Any) -> list[Path]:
        """Return the files of tasks, which count as input."""
        return sources.expand(options.against) if options.against else []

    def modules(self, options: Any) -> list[Path]:
        """Return the files of the rules."""
        return [Path(rules.__path__[0]) / f"{name}.py" for name in options.rules]

    def train(self, run: Run) -> None:
        """Clean both splits, drop duplicates, write down what is left."""
        if not run.main:
            return
        from pipeline.chain import blocks
        from pipeline.curation.work import HELD_OUT, SPLITS, TRAIN, Work
        from pipeline.data import rows as files
        from pipeline.system import cache

        read = {split: run.rows(split) for split in SPLITS}
        run.unchanged()
        with tempfile.TemporaryDirectory(dir=cache.folder()) as scratch:
            work = Work(run, Path(scratch))
            work.clean(HELD_OUT, read[HELD_OUT])
            work.clean(TRAIN, read[TRAIN], work.index())
            work.unique()
            tally = work.tally[TRAIN]
            if not tally.kept:
                blocks.forget(run.output)
                raise UserError(
                    f"{run.recipe.name}: no row is left of {tally.rows:,}; look at rules, contaminated and near_duplicates"
                )
            files.write(run.result, run.options.type, {split: work.left(split) for split in SPLITS})
        dropped = read[TRAIN].dropped + tally.dropped
        run.record["recipe"] |= {"rows": tally.kept + dropped.total(), "kept": tally.kept, "dropped": dict(dropped)}
        run.record["curation"] = work.record()


STAGE = Curate

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))

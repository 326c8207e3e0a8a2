"""Both splits of a recipe through all passes: the held-out rows first, since no row for training may be like one of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.curation import contamination, duplicates
from pipeline.curation.passes import Plan, Tally, cleaned, shortened
from pipeline.data import files, kept, sources, types
from pipeline.data.rows import SPLITS, Rows
from pipeline.data.types import Row
from pipeline.system.process import Progress

if TYPE_CHECKING:
    from pipeline.chain.run import Run

TRAIN, HELD_OUT = SPLITS
_ORDER = (HELD_OUT, TRAIN)


class Work:
    """What was done so far, in files of a folder; rows are numbered through both splits."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.options, self._folder = run, run.options, folder
        self.tally = {split: Tally() for split in _ORDER}
        self._keys = duplicates.Keys(folder / "keys")
        self._rows: dict[str, kept.Kept[Row]] = {}
        self._origins: dict[str, kept.Kept[str]] = {}
        self._dropped: Any = None

    def clean(self, split: str, rows: Rows, index: Path | None = None) -> None:
        """Apply the rules to the rows of a split, and drop those that hold what the index has."""
        import numpy as np

        options, tally = self.options, self.tally[split]
        plan = Plan(options.type, json.dumps(options.rules), bool(options.near_duplicates), index, options.contaminated)
        path = self._folder / f"{split}.arrow"
        writer, progress = kept.Writer(path), Progress(self.run.say)
        for block in cleaned(self.run, split, rows, plan):
            tally.add(block)
            for where, row in block["left"]:
                writer.add(row, where)
            self._keys.add(np.frombuffer(base64.b64decode(block["keys"]), np.uint64).reshape(-1, duplicates.COLUMNS))
            progress.tell(lambda: f"{split}: {tally.rows:,} of {len(rows.kept):,} rows read, {tally.dropped.total():,} dropped")
        writer.close()
        tally.kept = writer.rows
        self._rows[split], self._origins[split] = kept.load(path)
        self._say(split, "cleaned")

    def index(self) -> Path | None:
        """Return an index of what no row for training may hold: the held-out rows, and the files of `against`."""
        if not self.options.contaminated:
            return None
        kind, folder = types.load(self.options.type), self._folder / "index"
        writer = contamination.Writer(folder)
        writer.add("a held-out row", (text for row in self._rows[HELD_OUT] for text in contamination.asked(kind, row)))
        for path in sources.expand(self.options.against) if self.options.against else []:
            writer.add(path.name, (text for _, row in files.read([path]) for text in contamination.texts(row)))
        writer.close()
        return folder

    def unique(self) -> None:
        """Drop every row that is a duplicate of an earlier one; the held-out rows come before all others."""
        import numpy as np

        self._keys.close()
        path = self._folder / "dropped"
        path.write_bytes(bytes(max(1, self._keys.rows)))
        self._dropped = np.memmap(path, np.uint8, "r+")
        options, progress = self.options, Progress(self.run.say)
        if options.duplicates or options.near_duplicates:
            for same in duplicates.find(self._keys, self._read, options.near_duplicates, options.duplicates, self._dropped):
                self._drop(same)
                progress.tell(lambda: f"duplicates: row {same.row + 1:,} of {self._keys.rows:,}")  # noqa: B023
        for split in _ORDER:
            self._say(split, "without duplicates")

    def left(self, split: str) -> Iterator[Row]:
        """Yield the rows of a split that are handed on."""
        first = 0 if split == HELD_OUT else len(self._rows[HELD_OUT])
        for number, row in enumerate(self._rows[split], start=first):
            if not self._dropped[number]:
                yield row

    def record(self) -> dict[str, Any]:
        """Return what the manifest says."""
        return {split: self.tally[split].record() for split in SPLITS}

    def _place(self, number: int) -> tuple[str, int]:
        before = len(self._rows[HELD_OUT])
        return (HELD_OUT, number) if number < before else (TRAIN, number - before)

    def _read(self, number: int) -> Row:
        split, at = self._place(number)
        return self._rows[split][at]

    def _drop(self, same: duplicates.Same) -> None:
        (split, at), (other, kept_at) = self._place(same.row), self._place(same.kept)
        kind, tally = types.load(self.options.type), self.tally[split]
        reason = "duplicate" if same.exact else "near-duplicate"
        reason += " of a held-out row" if other == HELD_OUT != split else ""
        tally.drop(reason, self._origins[split][at], kind.document(self._rows[split][at]), {
            "kept": self._origins[other][kept_at], "kept_text": shortened(kind.document(self._rows[other][kept_at])),
            "similarity": f"{same.similarity:.3f}",
        })  # fmt: skip
        tally.kept -= 1

    def _say(self, split: str, done: str) -> None:
        tally = self.tally[split]
        lost = ", ".join(f"{count:,} {reason}" for reason, count in tally.dropped.most_common()) or "none"
        self.run.say(f"{split}, {done}: {tally.kept:,} of {tally.rows:,} rows; dropped: {lost}")
        if done == "cleaned" and tally.changed:
            self.run.say(f"{split}: {', '.join(f'{count:,} {what}' for what, count in tally.changed.most_common())}")

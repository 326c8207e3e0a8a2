"""Predict rows that nobody labelled with a fine-tuned model: one line of JSON for each row, in the order of the rows.

    python -m pipeline.commands.predict --runs runs/minilm --node finetune-tags --data new.jsonl [--output FILE]

Rows have the columns of the training data, with or without answers, which are not read; each line of a text file is a row.
A line of the output says where the row stands (`origin`), what the model was given (`row`) and its prediction (`said`):
labels, probabilities, spans or text. Of a row that asks nothing, such as an empty text, `said` is null and `reason` says why.
Several nodes, `--node finetune-a,finetune-b`, are an ensemble: the mean of what they say.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import finished
from pipeline.chain.finished import Finished
from pipeline.chain.stage import Predictor
from pipeline.data import files, sources, types
from pipeline.data.rows import Rows
from pipeline.data.types import DatasetType, Malformed, Row
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"runs": "OUT", "node": "STAGE", "data": "DATA"}
_PART = 1024  # rows that are held in memory at once


def asking(paths: list[Path], kind: DatasetType) -> Iterator[tuple[str, Row]]:
    """Yield where each row stands and what it asks, in order; UserError at the end if any could not be read."""
    faults = sources.Faults()
    try:
        for where, raw in _raw(paths, kind):
            try:
                given = kind.unanswered(raw)
                made = types.recognise(given, kind.name, where, kind.blank).convert(given)
            except UserError as error:
                faults.add(error.faults[0])
            except Malformed as error:
                faults.add(f"{where}: {error}")
            else:
                yield from ((where, row) for row in (made if isinstance(made, list) else [made]))
    except UserError as error:  # of lines that are no rows at all
        for line in error.faults:
            faults.add(line)
    faults.stop()


def _raw(paths: list[Path], kind: DatasetType) -> Iterator[sources.Raw]:
    """Yield raw rows; of a type whose tables name files with the content of these."""
    if not kind.beside:
        yield from files.read(paths, by_line=True)
        return
    faults = sources.Faults()
    for block in files.blocks(paths, at_once=kind.at_once):
        faults.take(block.faults)
        yield from block.located(kind, faults)
    faults.stop()


def predict(predicts: Any, kind: DatasetType, rows: Iterator[tuple[str, Row]], output: Path) -> tuple[int, Counter[str]]:
    """Write a line for each row; return how many rows there were, and what could not be read of them by reason.

    The file gets its name when every row was predicted; UserError leaves what was there before.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    count, unread = 0, Counter[str]()
    try:
        with partial.open("w", encoding="utf-8") as file:
            while part := list(itertools.islice(rows, _PART)):
                reasons = [kind.unasked(row) for _, row in part]
                read = Rows(kept=[row for (_, row), reason in zip(part, reasons, strict=True) if not reason])
                said = iter(predicts(read) if read.kept else [])
                for (where, row), reason in zip(part, reasons, strict=True):
                    shown = {key: value for key, value in kind.told(row).items() if key not in (*kind.blank, "group")}
                    answer = {"said": None, "reason": reason} if reason else {"said": next(said)}
                    file.write(json.dumps({"origin": where, "row": shown, **answer}, ensure_ascii=False) + "\n")
                unread += read.truncated + Counter(reason for reason in reasons if reason)
                count += len(part)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return count, unread


def _predictor(node: Finished) -> Predictor:
    """Return what predicts rows with a node; UserError where it gives none."""
    found = node.stage.predictor(node.options, str(node.folder))
    if found is None:
        raise UserError(
            f"{node.folder}: {node.title} gives no predictions of rows; name a node of a supervised task with STAGE="
        )
    return found


def _together(predictors: Sequence[Predictor]) -> Callable[[Rows], list[dict[str, Any]]]:
    """Return what predicts rows with one model, or with several whose predictions are averaged."""
    first, *others = (one.load() for one in predictors)
    average = predictors[0].average
    if not others or average is None:
        return first
    thresholds = [one.threshold() for one in predictors]
    return lambda rows: average([first(rows), *(one(Rows(kept=rows.kept)) for one in others)], thresholds)


def main() -> int:
    """Check the flags, then predict."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(("runs", "node", "data", "output"), sys.argv[1:])
    if not str(flags.get("data", "")).strip():
        faults.append("DATA: names no file; say which rows are to be predicted, as in DATA=new.jsonl")
    if faults:
        raise UserError(*faults)
    runs = Path(str(flags.get("runs", "runs/tiny")))
    names = str(flags.get("node", "")).split(",")
    nodes = [finished.named(runs, name.strip()) for name in names] if flags.get("node") else [finished.released(runs)]
    predictors = [_predictor(node) for node in nodes]
    label = " and ".join(node.name for node in nodes)
    if len(nodes) > 1 and (len({one.reads for one in predictors}) > 1 or predictors[0].average is None):
        raise UserError(
            f"--node {flags['node']}: what {label} say can't be averaged; name models of one task whose predictions are probabilities or values"
        )
    kind = types.load(predictors[0].reads)
    paths = list(sources.apart(sources.expand(str(flags["data"]), kind.kinds), kind.beside)[0])
    output = Path(str(flags.get("output", runs / f"{'-'.join(node.name for node in nodes)}-predictions.jsonl")))
    if output.resolve() in [path.resolve() for path in paths]:
        raise UserError(f"--output {output}: is one of the files that are read; give another name")
    if not sum(1 for _ in asking(paths, kind)):  # every row is looked at before the model is loaded
        raise UserError(f"{flags['data']}: holds no row")
    count, unread = predict(_together(predictors), kind, asking(paths, kind), output)
    for reason, times in sorted(unread.items()):
        say("predict", f"not read: {reason} ({times:,})")
    say("predict", f"{count:,} {'row' if count == 1 else 'rows'} by {label}; they lie in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

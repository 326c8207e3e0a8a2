"""Validation rows, evaluated while a model trains and never trained on: a share of the training rows, or files of their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipeline.chain.run import Run
from pipeline.data import recipe, split, types
from pipeline.data.rows import Rows
from pipeline.data.source_recipe import Source, SourceRecipe
from pipeline.data.types import Row
from pipeline.system.errors import UserError
from pipeline.system.words import counted

_SAME, _NEAR = "the same prompt or text as a validation row", "nearly the same as a validation row"


def training(run: Run, share: float, data: str) -> Rows:
    """Return the rows to train on, those that are looked at under `validation`: of the files in `data`, or else a share."""
    rows, reads = run.rows(), run.signature.reads
    if not data:
        rows.hold_back(share, run.seed, reads)
        return rows
    theirs = _of(run, data)
    _apart(rows, theirs, reads)
    rows.validation = theirs.kept
    for reason, count in theirs.dropped.items():
        run.say(f"validation_data: {counted(count, 'row')} dropped: {reason}")
    if not rows.kept:
        raise UserError(f"validation_data {data}: every training row stands in it, so nothing is left to train on")
    return rows


def label_few(rows: Rows, share: float, seed: int, labels_of: Callable[[Row], Iterable[str]]) -> None:
    """Keep a share of the rows of each label, at least one, drawn by seed; the others count as rows without a label."""
    by_label: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows.kept):
        by_label.setdefault(tuple(labels_of(row)), []).append(number)
    rng = random.Random(f"{seed}/labelled")
    left = [number for _, found in sorted(by_label.items()) for number in rng.sample(found, max(1, round(share * len(found))))]
    rows.dropped["without a label, as `labelled` says"] += len(rows.kept) - len(left)
    rows.keep(sorted(left), "labelled", share, seed)


def held_out(run: Run, data: str) -> Rows:
    """Return the rows to evaluate on, those that stand in the files of validation aside."""
    rows = run.rows("held_out")
    if data:
        _apart(rows, _of(run, data), run.signature.reads)
    return rows


def unseen(run: Run, rows: Rows, folder: str, record: Mapping[str, Any]) -> None:
    """Drop the rows that stand in the files of validation by which the model in a folder was chosen.

    UserError where these are no longer there as they were.
    """
    data = record["config"].get("validation_data")
    if not data:
        return
    was = [sha256 for _, sha256 in record["recipe"]["sources"][len(run.recipe.contents()) :]]
    try:
        source = Source.of(data, run.signature.reads)
        now = [sha256 for _, sha256 in recipe.listing([*source.files, *source.beside])]
    except UserError:
        now = []
    if now != was:
        raise UserError(
            f"{folder}: its validation_data, {data}, is not there as it was, so it is not known which held-out rows it was chosen by"
        )
    _apart(rows, _of(run, data), run.signature.reads)


def _of(run: Run, data: str) -> Rows:
    """Return the rows of files, none of which is held out."""
    reads = run.signature.reads
    given = Source.of(data, reads, held_out=False)
    return SourceRecipe(data, [given], reads, held_out=0.0).rows(reads, "train", run.seed)


def _apart(rows: Rows, others: Rows, type: str) -> None:
    """Drop the rows that ask what others ask, or nearly so, or are of a group of theirs, and count them."""
    theirs = {key for row in others.kept for key in _keys(row, type)}
    near = types.load(type).near(row for row in others.kept if not row.get("group"))
    left = []
    for number, row in enumerate(rows.kept):
        if not theirs.isdisjoint(_keys(row, type)):
            rows.dropped[_SAME] += 1
        elif near and not row.get("group") and near(row):
            rows.dropped[_NEAR] += 1
        else:
            left.append(number)
    if len(left) < len(rows.kept):
        rows.keep(left, "apart from", others.identity)
    if not others.identity:
        rows.identity = ""


def _keys(row: Row, type: str) -> Iterator[bytes]:
    """Yield the digests of what a row asks and of its group."""
    asked = types.load(type).asked(row)
    yield split.key({}, asked)
    if row.get("group"):
        yield split.key(row, asked)

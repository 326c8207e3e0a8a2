"""Held-out rows that the evaluation names by their numbers, read again: what was asked about a picture, and what retrieval found."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data import recipe as recipes
from pipeline.data import types
from pipeline.data.types import DatasetType, Row
from pipeline.report.nodes import Node
from pipeline.system.errors import UserError
from pipeline.tasks import _predictions as predictions

_FEW = 4  # predictions that are shown


@dataclass(frozen=True)
class Cell:
    """What a row has in one of its columns: a text, or small images (data URLs)."""

    text: str = ""
    images: Sequence[str] = ()


@dataclass(frozen=True)
class Search:
    """What one row found among all: its nearest candidates, and of each whether it is its own counterpart."""

    asked: Cell
    own: Cell
    nearest: Sequence[tuple[Cell, bool]]
    rank: int  # of its own
    among: int


@dataclass(frozen=True)
class Retrieval:
    """What a few rows of a node found, or why they can't be shown."""

    name: str
    heading: str
    ways: Mapping[str, Sequence[Search]]  # in words, such as "text to image"
    gone: str = ""


@dataclass(frozen=True)
class Predicted:
    """What was predicted of a few pictures that a node held out, or why they can't be shown."""

    heading: str
    rows: Sequence[tuple[Cell, Mapping[str, str]]]  # each with its label, and what each model says
    gone: str = ""


class HeldOut:
    """Rows that nodes held out, read again where their recipes are what they were."""

    def __init__(self, nodes: Sequence[Node], summary: Mapping[str, Any] | None) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._measured: Mapping[str, str] = summary["measured"] if summary else {}
        self._of = functools.cache(self._read)

    def _read(self, name: str) -> tuple[DatasetType, Sequence[Row]]:
        """Return the type of the rows that a measured node held out, and these; UserError where they are no longer known."""
        node = self._nodes.get(name)
        if not node or self._measured.get(name) != node.record["outputs"]:
            raise UserError(f"{name}: is no longer the one that was measured")
        return self._known(node)

    @staticmethod
    def _known(node: Node) -> tuple[DatasetType, Sequence[Row]]:
        made_by, found = node.record["recipe"], recipes.of(node.record)
        if found.digest(made_by["type"]) != made_by["digest"]:
            raise UserError(f"recipe {found.name}: is no longer what {node.name} was made with")
        return types.load(made_by["type"]), found.rows(made_by["type"], "held_out", int(node.record["seed"])).kept

    def pictures(self, sample: Mapping[str, Any]) -> Cell:
        """Return the pictures that a sample of the evaluation asks about, or in words why they can't be shown."""
        if not (row := sample.get("row")):
            return Cell()
        try:
            kind, rows = self._of(row["node"])
            return Cell(images=kind.thumbnails(rows[row["number"]]))
        except UserError as error:
            return Cell("; ".join(error.faults))

    def predicted(self, name: str) -> Predicted | None:
        """Return a few held-out rows of a fine-tuned node that can be looked at, spread over all, with what is predicted of them."""
        node = self._nodes[name]
        written = {
            one.name: predictions.read(one.made.folder) for one in self._nodes.values() if name in (one.name, one.control_of)
        }
        own = written[name]
        if not own.rows or not types.load(node.record["recipe"]["type"]).is_shown:
            return None
        try:
            kind, rows = self._known(node)
        except UserError as error:
            return Predicted(node.heading, [], "; ".join(error.faults))
        said = {label: found.said for label, found in written.items() if found.rows == own.rows} | dict(own.rivals)
        places = range(0, len(own.rows), -(-len(own.rows) // _FEW))
        whole = {json.dumps(kind.told(row)): row for row in rows}
        return Predicted(node.heading, [
            (Cell(images=kind.thumbnails(whole[json.dumps(own.rows[at])])),
             {"its label": _label(own.rows[at]), **{label: _label(found[at]) for label, found in said.items()}})
            for at in places
        ])  # fmt: skip

    def retrieval(self, name: str, block: Mapping[str, Any]) -> Retrieval | None:
        """Return what a few rows of a node found, where its evaluation says so."""
        if not block.get("neighbours"):
            return None
        heading = self._nodes[name].heading if name in self._nodes else name
        try:
            kind, rows = self._of(name)
        except UserError as error:
            return Retrieval(name, heading, {}, "; ".join(error.faults))
        ways: dict[str, list[Search]] = {}
        for one in block["neighbours"]:
            asked, own = (_cell(kind, rows[one["row"]], column) for column in (one["asked"], one["found"]))
            nearest = [(_cell(kind, rows[row], one["found"]), row == one["row"]) for row in one["nearest"]]
            way = ways.setdefault(f"{one['asked']} to {one['found']}", [])
            way.append(Search(asked, own, nearest, one["rank"], one["among"]))
        return Retrieval(name, heading, ways)


def _label(found: Mapping[str, Any]) -> str:
    """Return the label of a row or of a prediction; all of it in JSON where it has none."""
    return str(found["label"]) if "label" in found else json.dumps(found, ensure_ascii=False)


def _cell(kind: DatasetType, row: Row, column: str) -> Cell:
    """Return a column of a row as a page shows it."""
    return Cell(row[column]) if isinstance(row[column], str) else Cell(images=kind.thumbnails(row))

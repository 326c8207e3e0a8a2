"""The picture of the chain: each node below all of its parents, an arrow from each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.charts import WIDTH
from pipeline.report.nodes import Node, Parent
from pipeline.system.words import counted

_WIDE, _HIGH, _GAP, _BETWEEN = 184, 124, 24, 52  # of a box; between two columns, between two rows
_EDGE, _LANE = 4, 6  # of the picture; between two arrows side by side
_LETTERS = 20  # of a line in a box, at most


@dataclass(frozen=True)
class Box:
    """A node, or a model from elsewhere."""

    x: float
    y: float
    name: str
    lines: Sequence[str]
    wide: int = _WIDE
    high: int = _HIGH


@dataclass(frozen=True)
class Edge:
    """What was made from what."""

    path: str
    tip: str
    label: str
    agrees: bool
    loose: bool  # whether less than the model is taken from it
    x: float  # of the label
    y: float


@dataclass(frozen=True)
class Graph:
    """The picture of the chain."""

    width: int
    height: int
    boxes: Sequence[Box]
    edges: Sequence[Edge]


def draw(nodes: Sequence[Node]) -> Graph:
    """Return the picture of nodes that are given parents first."""
    contents = {key: lines for node in nodes for key, lines in _contents(node)}
    parents = {node.name: [(_key(parent), parent) for parent in node.parents] for node in nodes}
    positions = _positions(contents, {name: [key for key, _ in made] for name, made in parents.items()})
    boxes = [Box(*positions[key], short(key.rpartition("\n")[2], _LETTERS), lines) for key, lines in contents.items()]
    edges = [edge for name, made in parents.items() for edge in _edges(positions, name, made)]
    width = max(int(box.x) + _WIDE for box in boxes) + _EDGE + max(0, _GAP - _EDGE)
    return Graph(max(WIDTH, width), max(int(box.y) + _HIGH for box in boxes) + _EDGE, boxes, edges)


def overview(nodes: Sequence[Node]) -> Graph:
    """Return the chain drawn small: names alone, from left to right, each node right of all of its parents."""
    wide, high, gap, between = 132, 32, 34, 12
    columns: dict[str, int] = {}
    rows: dict[int, int] = {}
    boxes, edges = {}, []
    for node in nodes:
        parents = [parent for parent in node.parents if parent.here]
        column = columns[node.name] = max((columns[parent.here] + 1 for parent in parents), default=0)
        row = rows[column] = rows.get(column, -1) + 1
        x, y = float(_EDGE + column * (wide + gap)), float(_EDGE + row * (high + between))
        boxes[node.name] = Box(x, y, short(node.name, 15), (), wide, high)
        for number, parent in enumerate(parents):
            begin, end = boxes[parent.here], y + high * (number + 1) / (len(parents) + 1)
            start = begin.y + high / 2
            path = f"M{begin.x + wide:g} {start:g}C{begin.x + wide + gap / 2:g} {start:g} {x - gap / 2:g} {end:g} {x - 8:g} {end:g}"
            agrees = parent.agrees is not False
            edges.append(Edge(path, f"M{x - 1:g} {end:g}l-9 -5v10z", "", agrees, bool(parent.note), 0, 0))
    right = max(box.x + box.wide for box in boxes.values())
    return Graph(int(right) + _EDGE, int(max(box.y + box.high for box in boxes.values())) + _EDGE, list(boxes.values()), edges)


def short(text: str, letters: int) -> str:
    """Return a text whose beginning gives way where it is too long."""
    return text if len(text) <= letters else f"…{text[1 - letters :]}"


def _key(parent: Parent) -> str:
    """Return what a parent's box is known by: a node's name, or name and digest of what lies elsewhere."""
    return parent.here or f"{parent.outputs}\n{parent.name}"


def _contents(node: Node) -> Iterator[tuple[str, list[str]]]:
    """Yield the boxes that a node adds: parents from elsewhere, then its own; each with its lines."""
    for parent in node.parents:
        if not parent.here:
            yield _key(parent), ["from elsewhere", f"outputs {parent.outputs[:8]}" if parent.outputs else "from a hub"]
    record = node.record
    recipe = record["recipe"]
    title = f"control of {node.control_of}" if node.control_of else node.made.title
    read = [f"{short(node.recipe, 11)} {recipe['digest'][:8]}"] if recipe["digest"] else []
    rows = [counted(recipe["kept"], "row")] if "kept" in recipe else []
    yield node.name, [short(title, 25), *read, *rows, f"outputs {record['outputs'][:8]}"]


def _positions(contents: Mapping[str, object], parents: Mapping[str, Sequence[str]]) -> dict[str, tuple[float, float]]:
    """Return where each box lies: one row below the lowest of its parents, in the first column that is free there."""
    rows: dict[str, int] = {}
    taken: dict[int, int] = {}
    found = {}
    for key in contents:
        row = rows[key] = max((rows[parent] + 1 for parent in parents.get(key, ())), default=0)
        column = taken[row] = taken.get(row, -1) + 1
        found[key] = (float(_EDGE + column * (_WIDE + _GAP)), float(_EDGE + row * (_HIGH + _BETWEEN)))
    return found


def _edges(positions: Mapping[str, tuple[float, float]], name: str, made: Sequence[tuple[str, Parent]]) -> Iterator[Edge]:
    """Yield a node's arrows, side by side at its top; one that passes a row of boxes goes through the gap beside it."""
    left, top = positions[name]
    for number, (key, parent) in enumerate(made):
        x, bottom = positions[key][0] + _WIDE / 2, positions[key][1] + _HIGH
        end = left + _WIDE * (number + 1) / (len(made) + 1)
        lower = _LANE * (1 + (number + int(positions[key][0] // _WIDE)) % 4)  # so that arrows of two parents don't become one
        start, turn = bottom + lower, top - _BETWEEN + lower
        lane = positions[key][0] + _WIDE + _GAP / 2
        way = f"V{turn:g}" if turn <= start else f"V{start:g}H{lane:g}V{turn:g}"
        agrees = parent.agrees is not False
        label = ", ".join(text for text in (parent.label, "" if agrees else "made from another") if text)
        path, tip = f"M{x:g} {bottom:g}{way}H{end:g}V{top - 8:g}", f"M{end:g} {top - 1:g}l-5 -9h10z"
        yield Edge(path, tip, label, agrees, bool(parent.note), end + 9, top - 6)

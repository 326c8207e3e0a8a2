"""Finished nodes: read from their records, in the order of the graph, with what they descend from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.chain import directory, manifest, profile, request, stages
from pipeline.chain.stage import DATA, PARENT, ROWS, Stage
from pipeline.models.families import ANSWERING
from pipeline.system.errors import UserError
from pipeline.system.process import say


@dataclass(frozen=True)
class Finished:
    """A finished node: its folder and its record."""

    folder: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the node, which is its folder's."""
        return self.folder.name or self.folder.resolve().name

    @property
    def kind(self) -> str:
        """The kind of its stage."""
        return str(self.record["stage"])

    @property
    def title(self) -> str:
        """The stage's name for people."""
        return str(self.record["title"])

    @property
    def family(self) -> str:
        """The family of its model, or `rows`."""
        return str(self.record["family"])

    @property
    def control_of(self) -> str:
        """The node that it is a control of; empty for any other node."""
        return str(self.record["control_of"])

    @property
    def stage(self) -> Stage:
        """What its stage declares."""
        return stages.load(self.kind)

    @cached_property
    def options(self) -> Any:
        """Our own options that it was made with."""
        return self.stage.split(self.record["config"])[0]

    @property
    def trained(self) -> bool:
        """Whether anything was trained; a model may have been adopted as it is."""
        return "steps" in self.record

    @property
    def parents(self) -> dict[str, str]:
        """Role → folder or hub id of the parent that fills it."""
        return {str(entry["role"]): place(self.folder, entry) for entry in self.record["parents"]}

    def parent(self, role: str = PARENT) -> str:
        """Return folder or hub id of the parent that fills a role; empty where none does."""
        return self.parents.get(role, "")


def place(folder: Path, entry: Mapping[str, Any]) -> str:
    """Return where a parent lies that a record names: beside the node, or where the command line said."""
    path = str(entry.get("path") or entry.get("hub") or entry.get("node", ""))  # a record that was pushed names no paths
    return str(folder.parent / Path(path).name) if entry["beside"] else path


def read(folder: Path) -> Finished | None:
    """Return the finished node in a folder, or None; UserError where the folder holds a record that is not ours."""
    record = manifest.read(folder)
    if record is None:
        return None
    node = Finished(folder, record)
    if DATA in node.parents:  # a node of the same folder, wherever that was moved
        record["recipe"]["data"] = node.parents[DATA]
    return node


def finished(runs: Path) -> list[Finished]:
    """Return the finished nodes of a folder, parents first, each control right after what it controls."""
    found = {node.folder.name: node for path in sorted(runs.glob(f"*/{manifest.NAME}")) if (node := read(path.parent))}
    done: dict[str, Finished] = {}

    def visit(name: str) -> None:
        if name in found and name not in done:
            node = found[name]
            for before in [Path(entry["path"]).name for entry in node.record["parents"] if entry["beside"]] + [node.control_of]:
                if before != name:
                    visit(before)
            done.setdefault(name, node)
            for other, control in found.items():
                if control.control_of == name and all(Path(entry["path"]).name in done for entry in control.record["parents"] if entry["beside"]):  # fmt: skip
                    done.setdefault(other, control)

    for name in found:
        visit(name)
    return list(done.values())


def controls(nodes: Sequence[Finished], name: str) -> list[Finished]:
    """Return the controls of a node."""
    return [node for node in nodes if node.control_of == name]


def lineage(folder: Path) -> list[Finished]:
    """Return a finished node and all finished nodes that it descends from, whatever their role, the oldest first."""
    node = read(folder)
    if node is None:
        return []
    older = [found for entry in node.record["parents"] if "hub" not in entry for found in lineage(Path(place(folder, entry)))]
    return [*{found.folder.resolve(): found for found in older}.values(), node]


def named(runs: Path, name: str) -> Finished:
    """Return a finished node by its name, to be used as it was made; UserError where there is none."""
    node = read(runs / name)
    if node is None:
        known = ", ".join(other.name for other in finished(runs))
        raise UserError(f"{runs / name}: not finished; {f'finished are {known}' if known else 'run make first'}")
    request.unaltered(node.folder, node.record)
    return node


def answering(runs: Path, name: str = "") -> Finished:
    """Return a finished node whose model can be asked for text; where none is named, the released one, or what is there of its chain.

    Raises UserError if there is none, or several could be meant.
    """
    node = named(runs, name) if name else released(runs)
    if node.family not in ANSWERING:
        raise UserError(
            f"{node.folder}: a model of family {node.family} gives no answers; only those of {' and '.join(ANSWERING)} do"
        )
    return node


def released(runs: Path) -> Finished:
    """Return the node that is meant where none is named, to be used as it was made; UserError if several could be.

    Where the one that the profile releases is not finished, it is the only one at the end of what is, and a line says so.
    """
    nodes = _with_models(runs)
    try:
        wanted = by_profile(runs) or []
    except UserError:
        wanted = []  # whoever makes a node of that profile is told what is wrong with it
    node = next((node for node in nodes if [node.name] == wanted), None)
    if node is None:
        node = _only(runs, nodes)
        if len(wanted) == 1:
            say(node.name, f"is meant, since {wanted[0]}, the node that is released, is not finished")
    request.unaltered(node.folder, node.record)
    return node


def to_release(runs: Path) -> Finished:
    """Return the node that is pushed under the name itself; its files may be altered.

    The profile says which: the node with `release: yes`, else the only leaf. Where the folder belongs to no profile, it is
    the only leaf of what is finished. Raises UserError where that node is not finished, or several could be meant.
    """
    nodes, wanted = _with_models(runs), by_profile(runs)
    if not wanted:
        return _only(runs, nodes)
    if len(wanted) != 1:
        raise UserError(_several(runs, [node.name for node in nodes if node.name in wanted] or wanted))
    for node in nodes:
        if node.name == wanted[0]:
            return node
    line = directory.make_line(runs.resolve().name, runs.parent, wanted[0])
    instead = f", or say which with STAGE={nodes[-1].name}" if nodes else ""
    raise UserError(f"{runs}: {wanted[0]} is the node that is released, and is not finished; {line}{instead}")


def _with_models(runs: Path) -> list[Finished]:
    """Return the finished nodes that could be released."""
    return [node for node in finished(runs) if not node.control_of and node.family != ROWS]


def _only(runs: Path, nodes: Sequence[Finished]) -> Finished:
    """Return the one node that none of the others descends from; UserError with the candidates where there are several."""
    if not nodes:
        raise UserError(f"{runs}: no finished node; run make first")
    parents = {Path(entry["path"]).name for node in nodes for entry in node.record["parents"] if entry["beside"]}
    leaves = [node for node in nodes if node.folder.name not in parents]
    if len(leaves) != 1:
        raise UserError(_several(runs, [node.name for node in leaves]))
    return leaves[0]


def _several(runs: Path, names: Sequence[str]) -> str:
    return f"{runs}: {' and '.join(names)} could be meant; say which, as in STAGE={names[0]}, or write `release: yes` in the file of one"


def by_profile(runs: Path) -> list[str] | None:
    """Return the nodes that the profile of a folder could release, finished or not; None where it has no profile.

    They are those with `release: yes`, else its leaves. Raises UserError with the faults of the profile.
    """
    folder = profile.FOLDER / runs.resolve().name
    if not folder.is_dir():
        return None
    whole = profile.load(folder)
    nodes = {name: node for name, node in whole.nodes.items() if not node.control_of and not profile.hands_on_rows(node)}
    leaves = [name for name in nodes if not set(whole.children(name)) & nodes.keys()]
    return [name for name, node in nodes.items() if node.released] or leaves

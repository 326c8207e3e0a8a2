"""A profile is the graph of a chain: one YAML file a node, which says its stage, its parents and what differs from the defaults.

    stage: sft            # the script; by default the file's name up to its first dash
    parent: pretrain      # a node of this profile, a model folder, or a hub id; other roles in the same way
    data: pairs           # a node that hands on rows, in place of the recipe
    control_of: sft       # a control: every key, data included, is that node's unless this file says otherwise
    release: yes          # the node that is pushed under the name itself and talked to; by default the only leaf

A parent may be left out where exactly one node of the profile fits.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import ROOT
from pipeline.chain import stages
from pipeline.chain.stage import DATA, ROWS, Signature, Stage
from pipeline.system import config
from pipeline.system.errors import UserError
from pipeline.system.words import meant

FOLDER = ROOT / "stages" / "profiles"


@dataclass(frozen=True)
class Node:
    """One node of a profile, its control's keys filled in from the node that it controls."""

    name: str
    file: Path
    kind: str
    settings: dict[str, Any]  # keys of the stage and its library
    origins: dict[str, str]  # key → the file that sets it
    parents: dict[str, str]  # role → node of the profile, folder or hub id
    control_of: str = ""
    released: bool = False
    own: frozenset[str] = frozenset()  # keys that its own file sets

    @property
    def stage(self) -> Stage:
        """What its stage declares."""
        return stages.load(self.kind)

    @property
    def signature(self) -> Signature | None:
        """What goes in and comes out; None where its options are at fault, which the stage itself reports."""
        if config.check(self.settings, self.origins, self.stage.Options, self.stage.library_of(self.settings), loose=True):
            return None
        try:
            return self.stage.declared(self.stage.split(self.settings)[0])
        except UserError:
            return None


@dataclass(frozen=True)
class Profile:
    """The nodes of a profile, parents first, each control after the node that it controls."""

    folder: Path
    nodes: dict[str, Node]
    unresolved: dict[str, list[str]] = field(default_factory=dict)  # node → why a parent of it is not known

    @property
    def name(self) -> str:
        """The name of the profile, which is its folder's."""
        return self.folder.name

    def waits_for(self, name: str) -> list[str]:
        """Return the nodes that must be finished before a node."""
        node = self.nodes[name]
        return [parent for parent in [*node.parents.values(), node.control_of] if parent in self.nodes]

    def children(self, name: str) -> list[str]:
        """Return the nodes that go on from a node, controls left out."""
        return [other for other, node in self.nodes.items() if name in node.parents.values() and not node.control_of]


def names() -> list[str]:
    """Return the names of all profiles."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def only(file: str) -> Path:
    """Return the file of a name in the one profile that has it, such as the settings of a command; UserError where it isn't one."""
    found = sorted(FOLDER.glob(f"*/{file}"))
    if len(found) != 1:
        raise UserError(
            f"command line: --config is missing; {len(found)} profiles have a {file}; say which, as in PROFILE=NAME"
        )
    return found[0]


def settings(flags: dict[str, Any], name: str, options: type) -> tuple[dict[str, Any], Path, Path, list[str]]:
    """Return what a command is given by its settings in a profile and by flags, that file, the folder of runs, and faults.

    `name`: of the file, where the flags name no other. `options`: the dataclass by which keys and values are checked.
    """
    file = Path(str(flags.pop("config", "") or only(name)))
    runs = Path(str(flags.pop("runs", "runs"))) / file.parent.name
    found = config.read_profile(file)
    origins = dict.fromkeys(found, str(file)) | dict.fromkeys(flags, "command line")
    return found | flags, file, runs, config.check(found | flags, origins, options, None)


def find(name: str) -> Path:
    """Return the folder of a profile by its name or path; UserError with the nearest names if there is none."""
    for folder in (FOLDER / name, Path(name)):
        if name and folder.is_dir() and any(folder.glob("*.yaml")):
            return folder
    remedy = meant(name, names(), f"there are {', '.join(names())}", most=2)
    raise UserError(f"PROFILE={name}: no such profile in stages/profiles; {remedy}; `make new` writes one for your own files")


@cache
def _settings_files() -> frozenset[str]:
    """Return the names of files in a profile that are a command's settings and no node: those of commands with `SETTINGS`."""
    scripts = (ROOT / "pipeline" / "commands").glob("*.py")
    found = (re.search(r'^SETTINGS = "([\w.-]+)"$', path.read_text(encoding="utf-8"), flags=re.MULTILINE) for path in scripts)
    return frozenset(match[1] for match in found if match)


@cache
def targets() -> frozenset[str]:
    """Return the names of all make targets."""
    rules = re.findall(r"^([a-z][a-z -]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    commands = (path.stem.replace("_", "-") for path in (ROOT / "pipeline" / "commands").glob("[a-z]*.py"))
    return frozenset([*commands, *(name for rule in rules for name in rule.split())])


def read_node(file: Path) -> Node:
    """Return the node that a file describes; UserError with every fault in what belongs to the graph."""
    own = config.read_profile(file)
    controlled = own.pop("control_of", "")
    base = _controlled(file, str(controlled)) if controlled else None
    kind = str(own.pop("stage", base.kind if base else file.stem.partition("-")[0]))
    try:
        stage = stages.load(kind)
    except UserError as error:
        raise UserError(*(f"{file}: {fault}" for fault in error.faults)) from None
    released = own.pop("release", False)
    faults = [f"{file}: release: expected yes or no, found {released!r}"] * (not isinstance(released, bool))
    if base and kind != base.kind:
        faults.append(
            f"{file}: stage: {kind}, but control_of names {base.name}, a node of {base.kind}; a control is of the same"
        )
    if {DATA, "recipe"} <= own.keys():
        faults.append(f"{file}: data and recipe: both say where the rows come from; leave one out")
    roles = {role: str(own.pop(role)) for role in (*stage.takes, DATA) if role in own}
    inherited = {role: name for role, name in (base.parents if base else {}).items() if role != DATA or "recipe" not in own}
    if faults:
        raise UserError(*faults)
    origins = dict.fromkeys(own, str(file))
    node = Node(
        file.stem, file, kind, (base.settings if base else {}) | own, (base.origins if base else {}) | origins,
        inherited | roles, str(controlled), released, frozenset([*own, *roles]),
    )  # fmt: skip
    if base and (signature := node.signature):  # a control that does without something needs no model for it
        taken = {*signature.takes, DATA, *roles}
        return replace(node, parents={role: name for role, name in node.parents.items() if role in taken})
    return node


def _controlled(file: Path, name: str) -> Node:
    other = file.parent / f"{name}.yaml"
    if not other.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml") if path != file))
        raise UserError(f"{file}: control_of: {name}: no such node in this profile; there are {known}")
    if other == file:
        raise UserError(f"{file}: control_of: {name} is this node itself; name the node that it is held against")
    if "control_of" in config.read_profile(other):  # before that node is read, since two may name each other
        raise UserError(f"{file}: control_of: {name} is a control itself; name the node that both are held against")
    return read_node(other)


def load(folder: Path) -> Profile:
    """Return a profile, parents first; UserError with every fault of the graph, and then of its nodes' keys, too."""
    faults: list[str] = []
    found: dict[str, Node] = {}
    known: set[str] = set()  # nodes, those whose file is broken among them
    for file in sorted(folder.glob("*.yaml"), key=lambda path: path.stem):
        if file.name in _settings_files():
            continue
        if file.stem in targets():
            faults.append(
                f"{file}: a node can't be named {file.stem}, since `make {file.stem}` is something else; rename the file"
            )
            continue
        known.add(file.stem)
        try:
            found[file.stem] = read_node(file)
        except UserError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    for node in found.values():
        faults += [f"{node.file}: {role}: {name}: no such node, folder or hub id; {_nearest(name, known - {node.name})}"
                   for role, name in node.parents.items() if role in node.own and not _stands_for_something(name, known)]  # fmt: skip
    if not found and not faults:
        faults.append(f"{folder}: no node: it holds no YAML file of a stage")
    if faults:
        raise UserError(*dict.fromkeys([*faults, *(fault for node in found.values() for fault in _faults_of_keys(node))]))
    unresolved = _fill_in(found)
    return Profile(folder, _ordered(folder, found), unresolved)


def _faults_of_keys(node: Node) -> list[str]:
    library = node.stage.library_of(node.settings)
    return config.check(node.settings, node.origins, node.stage.Options, library, ignores=node.stage.ignores)


def _nearest(name: str, nodes: Collection[str]) -> str:
    return meant(name, nodes, f"nodes are {', '.join(sorted(nodes))}")


def _stands_for_something(name: str, nodes: Collection[str]) -> bool:
    return name in nodes or "/" in name or Path(name).exists()


def _fill_in(nodes: dict[str, Node]) -> dict[str, list[str]]:
    """Give nodes the parents that they leave out, where exactly one node fits; return why it could not be done for others."""
    unresolved: dict[str, list[str]] = {}
    signatures = {name: node.signature for name, node in nodes.items()}
    for name, node in nodes.items():
        signature = signatures[name]
        for role, families in signature.takes.items() if signature else ():
            if role in node.parents or role in (signature.optional if signature else ()):
                continue
            below = {name, *_descendants(name, nodes)}
            fitting = [other for other, gives in signatures.items()
                       if other not in below and not nodes[other].control_of and gives and gives.gives in families]  # fmt: skip
            if len(fitting) == 1:
                nodes[name] = replace(nodes[name], parents=nodes[name].parents | {role: fitting[0]})
            else:
                unknown = [other for other, gives in signatures.items() if other not in below and gives is None]
                told = _why_unresolved(fitting, unknown, families)
                unresolved.setdefault(name, []).append(f"{node.file}: {role}: is left out, and {told}")
    return unresolved


def _why_unresolved(fitting: Sequence[str], unknown: Sequence[str], families: Sequence[str]) -> str:
    """Return why a parent that is left out is not known; `unknown`: nodes whose own faults hide what they give."""
    if fitting:
        return f"{' and '.join(fitting)} fit; name one"
    if unknown:
        return f"whether {' or '.join(unknown)} fits is only known once the faults there are mended"
    return f"no node gives a model of family {' or '.join(families)}"


def _descendants(name: str, nodes: Mapping[str, Node]) -> Iterator[str]:
    for other, node in nodes.items():
        if name in node.parents.values() or node.control_of == name:
            yield other
            if other != name:
                yield from _descendants(other, {key: value for key, value in nodes.items() if key != name})


def _ordered(folder: Path, nodes: dict[str, Node]) -> dict[str, Node]:
    """Return the nodes, parents first; UserError where they go round in a circle."""
    done: dict[str, Node] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(f"{folder}: the parents go round in a circle: {' <- '.join([*path[path.index(name) :], name])}")
        if name not in done:
            node = nodes[name]
            for parent in [*node.parents.values(), node.control_of]:
                if parent in nodes:
                    visit(parent, (*path, name))
            done[name] = node

    for name in nodes:
        visit(name, ())
    return done


def hands_on_rows(node: Node) -> bool:
    """Say whether a node hands on rows and no model."""
    return node.signature is not None and node.signature.gives == ROWS

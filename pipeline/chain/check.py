"""Every node of a profile, read before the first one trains: configuration, graph, template, data, all faults at once.

A check that passed is remembered by the digest of what it read, beside the nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.chain import fits, life, manifest, profile, request
from pipeline.chain.stage import DATA, PARENT, ROWS, Signature
from pipeline.data import recipe as recipes
from pipeline.models.tokenization import template_path
from pipeline.system import config, hardware, hashes, process
from pipeline.system.errors import UserError
from pipeline.system.words import counted

PASSED = ".checked.json"


@dataclasses.dataclass
class Examined:
    """What was found out about one node."""

    name: str
    told: str = ""  # rows kept, held out and dropped
    faults: list[str] = dataclasses.field(default_factory=list)
    identity: Any = None  # what the check depends on


def faults_of(requested: request.Request) -> list[str]:
    """Return the faults of the profile that a request's node belongs to; none where the same check passed before."""
    assert requested.file
    assert requested.output
    try:
        whole = profile.load(requested.file.parent)
    except UserError as error:
        return list(error.faults)
    runs = requested.output.parent
    mine = {requested.name: requested}
    if _digest(whole, runs, mine) == (manifest.read(runs, PASSED) or {}).get("inputs"):
        return []
    found = list(examine(whole, runs, mine, hardware.room()))
    faults = list(dict.fromkeys(fault for node in found for fault in node.faults))
    if not faults:
        remember(whole, runs, mine)
    return faults


def remember(whole: profile.Profile, runs: Path, mine: Mapping[str, request.Request] | None = None) -> None:
    """Write down that a profile passed the check; of several processes that start at once, the main one does."""
    if not process.main_process():
        return
    runs.mkdir(parents=True, exist_ok=True)
    manifest.write_json(runs / PASSED, {"inputs": _digest(whole, runs, mine or {})})


def _requests(
    whole: profile.Profile, runs: Path, mine: Mapping[str, request.Request]
) -> Iterator[tuple[profile.Node, request.Request]]:
    for name, node in whole.nodes.items():
        flags = ["--config", str(node.file), "--output", str(runs / name), "--upstream", "yes"]
        yield node, mine.get(name) or request.read(node.stage, flags)


def _digest(whole: profile.Profile, runs: Path, mine: Mapping[str, request.Request]) -> str:
    """Return the digest of all that a check reads: settings, graph, recipes, templates, scripts, outside parents, libraries."""
    found: list[Any] = [manifest.versions()]
    for node, requested in _requests(whole, runs, mine):
        entry: list[Any] = [node.name, node.kind, requested.values, requested.parents, requested.data]
        entry.append(hashes.sha256(node.stage.script))
        try:
            options, _ = node.stage.split(requested.values)
            signature = node.stage.declared(options)
            entry.append([request.parent_identity(*one, node.stage, signature) for one in _outside(whole, requested)])
            scratch = dataclasses.replace(requested, faults=[])
            if not requested.data or not request.hands_on_rows(requested.data):
                recipe = life.recipe_of(scratch, signature, options)
                entry.append(scratch.faults if recipe is recipes.EMPTY else recipe.digest(signature.reads))
            template = getattr(options, "chat_template", "")
            entry.append(hashes.sha256(template_path(template)) if template else None)
        except (UserError, TypeError) as error:
            entry.append(str(error))
        found.append(entry)
    return hashes.digest(found)


def _outside(whole: profile.Profile, requested: request.Request) -> list[tuple[str, str]]:
    """Return role and place of the parents that are no nodes of the profile."""
    assert requested.output
    runs = requested.output.resolve().parent
    return [
        (role, path) for role, path in requested.parents.items()
        if Path(path).name not in whole.nodes or Path(path).resolve().parent != runs
    ]  # fmt: skip


def examine(
    whole: profile.Profile, runs: Path, mine: Mapping[str, request.Request] | None = None, room: int | None = None
) -> Iterator[Examined]:
    """Yield what there is to say about each node, parents first; libraries are imported to check their keys.

    `room`: bytes of memory that may be filled; None where that is not looked at.
    """
    signatures: dict[str, Signature] = {}
    for node, requested in _requests(whole, runs, mine or {}):
        found = Examined(node.name, faults=list(dict.fromkeys([*requested.faults, *whole.unresolved.get(node.name, [])])))
        found.faults += config.check(
            requested.values,
            requested.origins,
            node.stage.Options,
            node.stage.library_of(requested.values),
            ignores=node.stage.ignores,
        )
        if not found.faults:
            _examine_node(whole, node, requested, signatures, found)
        found.faults += requested.unread()
        if not found.faults and room is not None:
            options, arguments = node.stage.split(requested.values)
            said = fits.fault(node, fits.parameters(whole, node), options, arguments, room)
            found.faults += [said] if said else []
        yield found


def _examine_node(
    whole: profile.Profile, node: profile.Node, requested: request.Request, signatures: dict[str, Signature], found: Examined
) -> None:
    """Fill in what signature, parents, template, lengths and data say."""
    options, arguments = node.stage.split(requested.values)
    try:
        signature = signatures[node.name] = node.stage.declared(options)
        node.stage.sources(options)
    except UserError as error:
        found.faults += [f"{node.file}: {fault}" for fault in error.faults]
        return
    found.faults += _parents(whole, node, requested, signature, signatures)
    found.faults += _template(whole, node, options, signatures) + _length(whole, node, options, arguments, signatures)
    if signature.reads:
        _data(node, requested, signature, options, int(arguments.get("seed", 42)), found)


def _parents(
    whole: profile.Profile,
    node: profile.Node,
    requested: request.Request,
    signature: Signature,
    signatures: Mapping[str, Signature],
) -> list[str]:
    """Return why the parents don't fit: a node of the profile by what it declares, others by what lies there."""
    faults = []
    for role, name in node.parents.items():
        families = (ROWS,) if role == DATA else signature.takes.get(role, ())
        if name in signatures and signatures[name].gives not in families:
            faults.append(
                f"{node.file}: {role}: {name} gives {signatures[name].gives}, but {node.kind} takes {' or '.join(families)}"
            )
        if role == DATA and name in signatures and signatures[name].makes not in ("", signature.reads):
            faults.append(
                f"{node.file}: data: {name} hands on rows of type {signatures[name].makes}, but {node.kind} reads {signature.reads}"
            )
    for role, path in _outside(whole, requested):
        try:
            request.parent_identity(role, path, node.stage, signature)
        except UserError as error:
            faults += error.faults
    return faults


def _template(whole: profile.Profile, node: profile.Node, options: Any, signatures: Mapping[str, Signature]) -> list[str]:
    """Return why there would be no chat template: none given, and no node before it brings one."""
    if not hasattr(options, "chat_template"):
        return []
    try:
        if options.chat_template:
            template_path(options.chat_template)
            return []
    except UserError as error:
        return [f"{node.file}: {fault}" for fault in error.faults]
    before = whole.nodes.get(node.parents.get(PARENT, ""))
    while before is not None:
        if before.settings.get("chat_template") or before.name not in signatures:  # whose faults are told there
            return []
        if PARENT not in before.parents:
            if not signatures[before.name].reads:  # an adopted model: no row of ours made its tokenizer, which may bring one
                return []
            return [
                f"{node.file}: chat_template: is needed, since {before.name} makes a tokenizer without one; chatml.jinja is there"
            ]
        before = whole.nodes.get(before.parents[PARENT])
    return []


def _length(
    whole: profile.Profile, node: profile.Node, options: Any, arguments: Mapping[str, Any], known: Collection[str]
) -> list[str]:
    """Return that rows would be longer than the model has positions, where the profile decides both.

    `known`: the nodes whose options are not at fault.
    """
    longest = arguments.get("max_length", node.stage.longest(options))
    before = whole.nodes.get(node.parents.get(PARENT, ""))
    while before is not None and before.name in known and longest:
        positions = before.stage.positions(before.stage.split(before.settings)[0])
        if not before.parents and positions is not None:  # a parent by another role may bring the tower that reads texts
            told = f"{node.file}: max_length: {longest} is more than the {positions} positions of {before.name} ({before.file}: max_length)"
            return [told] if longest > positions else []
        before = whole.nodes.get(before.parents.get(PARENT, ""))
    return []


def _data(
    node: profile.Node, requested: request.Request, signature: Signature, options: Any, seed: int, found: Examined
) -> None:
    """Read the rows of a node's recipe, and count them."""
    if requested.data and DATA in node.parents and not request.hands_on_rows(requested.data):
        found.told = f"rows of {node.parents[DATA]}, which is not made yet"
        return
    scratch = dataclasses.replace(requested, faults=[])
    recipe = life.recipe_of(scratch, signature, options)
    where = "" if requested.data else f"{node.file}: "  # --data names itself
    found.faults += [f"{where}{fault}" for fault in scratch.faults]
    if recipe is recipes.EMPTY:
        return
    try:
        rows = recipe.rows(signature.reads, "train", seed)
        held_out = len(recipe.rows(signature.reads, "held_out", seed).kept)
    except UserError as error:
        found.faults += error.faults
        return
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in rows.dropped.items()) or "none"
    found.told = (
        f"{recipe.name}: {counted(len(rows.kept), 'row')} of type {signature.reads}, {held_out:,} held out; dropped: {dropped}"
    )

"""What a command asks of a stage: flags and profile, checked, and the digest of everything that goes in.

Nothing heavy is imported here: a node that is up to date ends after this.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, profile
from pipeline.chain.stage import DATA, PARENT, ROWS, Signature, Stage
from pipeline.data import recipe as recipes
from pipeline.models.families import family_of
from pipeline.models.tokenization import template_path
from pipeline.system import config, hashes
from pipeline.system.errors import UserError

# Keys of the libraries that change where or how loudly a stage runs, never what it learns.
_NEUTRAL = {
    "use_cpu", "report_to", "run_name", "disable_tqdm", "logging_steps", "logging_strategy", "logging_first_step",
    "save_steps", "save_strategy", "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataset_num_proc", "log_level", "project",
}  # fmt: skip


@dataclasses.dataclass
class Request:
    """Flags and profile of one command, and every fault found in them so far."""

    stage: Stage
    name: str  # of the node
    output: Path | None
    file: Path | None  # of the node in its profile
    values: dict[str, Any]  # keys of the stage and its library
    origins: dict[str, str]  # key → where it comes from
    parents: dict[str, str]  # role → folder or hub id
    data: str | None  # in place of the recipe
    given: dict[str, Any]  # what the command line alone says: flags, data, parents; what is kept from the one before included
    faults: list[str]
    control_of: str = ""
    strict: bool = False  # a change of code or library counts
    why: bool = False  # only say what changed
    check: bool = False  # check the whole profile before the first step
    kept: str = ""  # flags of the run before that are asked for again
    shared: dict[str, Any] = dataclasses.field(default_factory=lambda: _overrides({}))  # a control's: what its node was given
    usual: dict[str, str] = dataclasses.field(default_factory=dict)  # role → the parent that the profile names

    def gather(self, error: UserError) -> None:
        """Take note of faults and go on, so that all are shown at once."""
        self.faults.extend(fault for fault in error.faults if fault not in self.faults)

    def overrides(self) -> dict[str, Any]:
        """Return what differs from the profile by the command line alone: flags, data, parents."""
        others = {role: path for role, path in self.given["parents"].items() if not _same(path, self.usual.get(role))}
        return {"flags": self.given["flags"], "data": self.given["data"], "parents": others}

    def parent_entries(self, identities: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the parents as the record names them; `beside`: it is a node of the same folder."""
        assert self.output
        home = self.output.resolve().parent
        entries = []
        for role, path in [*self.parents.items(), *([(DATA, self.data)] if DATA in identities else [])]:
            record = manifest.read(Path(str(path))) or {}
            named = {"node": record["node"]} if record else {}
            beside = bool(record) and Path(str(path)).resolve().parent == home
            entries.append({"role": role, "path": path, "beside": beside, **named, **identities.get(role, {})})
        return entries

    def unread(self) -> list[str]:
        """Return which options are given without the parent beside which they are read."""
        roles = {field.name: field.metadata.get("beside") for field in dataclasses.fields(self.stage.Options)}
        return [
            f"{self.origins[key]}: {key}: is read only with --{roles[key]}; leave it out"
            for key in self.values if roles.get(key) and roles[key] not in self.parents
        ]  # fmt: skip

    def settle(self) -> None:
        """Raise UserError with every fault found, if there is one."""
        if self.faults:
            raise UserError(*self.faults)


def read(stage: Stage, argv: Sequence[str]) -> Request:
    """Read the command line and the node's file that it names."""
    flags, faults = config.read_flags(argv, (*stage.takes, DATA))
    switches = {name: flags.pop(name, "") == "yes" for name in config.SWITCHES}
    file = Path(flags.pop("config")) if "config" in flags else None
    output = Path(flags.pop("output")) if "output" in flags else None
    if output is None:
        faults.append("command line: --output is missing; say where the node's folder is, as in --output runs/mine/NODE")
    given = {
        "flags": flags,
        "data": flags.pop(DATA, None),
        "parents": {role: flags.pop(role) for role in stage.takes if role in flags},
    }
    name = output.resolve().name if output else stage.kind
    found = Request(stage, name, output, file, {}, {}, {}, None, given, faults, check=switches["check"],
                    strict=switches["strict"], why=switches["why"])  # fmt: skip
    node = _node(found)
    if switches["upstream"] and output:
        _keep(found, output)
    if node and node.control_of and output:
        _share(found, output.resolve().parent / node.control_of, node.own)
    _fill(found, node)
    return found


def _node(found: Request) -> profile.Node | None:
    """Return the node of the profile's file, if one is given."""
    if not found.file:
        return None
    try:
        node = profile.read_node(found.file)
    except UserError as error:
        found.gather(error)
        return None
    if node.kind != found.stage.kind:
        found.faults.append(
            f"{found.file}: is a node of {node.kind}; run stages/{node.kind}.py, or set `stage: {found.stage.kind}`"
        )
        return None
    return node


def _overrides(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a node was given on its command line."""
    return record.get("overrides") or {"flags": {}, "data": None, "parents": {}}


def _made_with(folder: Path) -> dict[str, Any]:
    """Return what the node in a folder, finished or not, was given on its command line."""
    return _overrides(manifest.read(folder) or manifest.read(folder, manifest.CLAIM) or {})


def told(overrides: Mapping[str, Any]) -> str:
    """Return overrides as the flags that they were."""
    data = [(DATA, overrides["data"])] if overrides["data"] else []
    return ", ".join(f"--{key} {value}" for key, value in [*overrides["flags"].items(), *overrides["parents"].items(), *data])


def _keep(found: Request, folder: Path) -> None:
    """Ask again for what the node was made with on its command line."""
    kept = _made_with(folder)
    found.kept = told(kept)
    found.given = {
        "flags": kept["flags"] | found.given["flags"], "data": found.given["data"] or kept["data"],
        "parents": kept["parents"] | found.given["parents"],
    }  # fmt: skip


def _share(found: Request, folder: Path, own: frozenset[str]) -> None:
    """Ask for what the node that a control controls was given, save for what the control's own file or command line says.

    It isn't the control's own: where the node returns to the profile, so does its control.
    """
    said = own | found.given["flags"].keys() | found.given["parents"].keys() | ({DATA} if found.given["data"] else set())
    theirs = _made_with(folder)
    found.shared = {
        "flags": {key: value for key, value in theirs["flags"].items() if key not in said},
        "data": None if said & {DATA, "recipe"} else theirs["data"],
        "parents": {role: path for role, path in theirs["parents"].items() if role not in said},
    }


def _fill(found: Request, node: profile.Node | None) -> None:
    """Put values and parents together: the profile's, then the command line's."""
    flags, shared = found.given["flags"], found.shared["flags"]
    found.values = (node.settings if node else {}) | shared | flags
    found.origins = (node.origins if node else {}) | dict.fromkeys([*shared, *flags], "command line")
    named = dict(node.parents) if node else {}
    if node and found.output:
        found.control_of = node.control_of
        given = {*named, *found.given["parents"], *found.shared["parents"], *found.stage.optional}
        missing = {role for role in found.stage.takes if role not in given}
        named |= _resolved(found, node, missing)
        named = {role: _place(found.output, name, node.file) for role, name in named.items()}
    found.usual = named
    found.parents = named | found.shared["parents"] | found.given["parents"]
    rows = found.parents.pop(DATA, None)
    found.data = found.given["data"] or found.shared["data"] or (None if "recipe" in {*shared, *flags} else rows)


def _resolved(found: Request, node: profile.Node, missing: set[str]) -> dict[str, str]:
    """Return the parents that the file leaves out and the rest of the profile decides."""
    if not missing:
        return {}
    try:
        whole = profile.load(node.file.parent)
    except UserError as error:
        found.gather(error)
        return {}
    found.faults += [
        fault for role in missing for fault in whole.unresolved.get(node.name, []) if f": {role}: is left out" in fault
    ]
    return (
        {role: name for role, name in whole.nodes[node.name].parents.items() if role in missing}
        if node.name in whole.nodes
        else {}
    )


def _place(output: Path, name: str, file: Path) -> str:
    """Return where a parent lies: a node of the same profile lies beside the output."""
    return str(output.parent / name) if (file.parent / f"{name}.yaml").is_file() else name


def _same(path: str, usual: str | None) -> bool:
    return usual is not None and Path(path).resolve() == Path(usual).resolve()


def unaltered(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise UserError naming the files of a finished node that are no longer those that it made."""
    if faults := manifest.altered(folder, record):
        raise UserError(
            *(f"{folder}: {fault} when {record['node']} was finished; put it back, or move the folder away and make "
              f"{record['node']} again" for fault in faults)
        )  # fmt: skip


def parent_identity(role: str, parent: str, stage: Stage, signature: Signature) -> dict[str, Any]:
    """Return what a parent contributes to the inputs; UserError if it is missing, unfinished or of another family.

    A finished node is known by its record, another folder by its files, a hub id by its name.
    """
    folder, families = Path(parent), (ROWS,) if role == DATA else signature.takes.get(role, ())
    wanted = (
        f"but {stage.kind} takes {' or '.join(families)} as its {role}"
        if families
        else f"but {stage.kind} takes no {role} here"
    )
    if not folder.is_dir():
        if parent.count("/") == 1 and not parent.startswith((".", "/")) and not folder.parent.exists():
            return {"hub": parent}
        raise UserError(f"--{role} {parent}: no such folder; make {folder.name} first, or give a model folder or hub id")
    record = manifest.read(folder)
    if record is not None:
        if record["family"] not in families:
            fits = f"; {_fitting(record['family'], stage)}" if role == PARENT and record["family"] != ROWS else ""
            what = (
                f"a model of family {record['family']}" if record["family"] != ROWS else f"rows of type {record['rows_type']}"
            )
            raise UserError(f"--{role} {parent}: {record['node']} made {what}, {wanted}{fits}")
        unaltered(folder, record)
        return {"stage": record["stage"], "outputs": record["outputs"]}
    if (folder / manifest.CLAIM).exists():
        raise UserError(f"--{role} {parent}: that node is not finished; run it again and it goes on where it was")
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named, outputs = str((settings.get("architectures") or [""])[0]), len(settings.get("id2label") or {})
    except (OSError, ValueError, AttributeError, TypeError, LookupError, RecursionError):
        raise UserError(f"--{role} {parent}: no model folder: config.json is missing or broken") from None
    family = family_of(named, outputs) if named else ""
    if family and family not in families:
        raise UserError(f"--{role} {parent}: {named} is a model of family {family}, {wanted}")
    return {"outputs": hashes.outputs(hashes.files(folder))}


def hands_on_rows(data: str | None) -> bool:
    """Say whether --data names a node's folder, finished or not, and no plain data."""
    return bool(data) and any((Path(str(data)) / name).is_file() for name in (manifest.NAME, manifest.CLAIM))


def _fitting(family: str, stage: Stage) -> str:
    """Return in words which other kinds of stages can go on from a model of a family."""
    from pipeline.chain import stages

    fitting = [kind for kind in stages.known() if kind != stage.kind and family in stages.load(kind).families()]
    verb = "takes" if len(fitting) == 1 else "take"
    return f"{' and '.join(fitting)} {verb} it" if fitting else "no other stage takes it"


def identity(
    request: Request, options: Any, arguments: dict[str, Any], recipe: recipes.Recipe, signature: Signature
) -> dict[str, Any]:
    """Return all that a node's result depends on, as one JSON value; faults are gathered."""
    ours = dataclasses.asdict(options)
    ours.pop("recipe", None)  # known by its content, not by its name
    for field in dataclasses.fields(options):
        if field.metadata.get("omitted") and ours[field.name] == config.default(field):
            del ours[field.name]
        elif field.metadata.get("by_content") and (place := Path(str(ours[field.name]))).exists():
            ours[field.name] = "a folder" if place.is_dir() else hashes.sha256(place)
    if ours.get("chat_template"):
        try:
            ours["chat_template"] = hashes.sha256(template_path(ours["chat_template"]))
        except UserError as error:
            request.gather(error)
    found: dict[str, Any] = {"stage": request.stage.kind, "options": ours}
    found["arguments"] = {key: value for key, value in sorted(arguments.items()) if key not in _NEUTRAL}
    if recipe is not recipes.EMPTY:
        try:
            found["recipe"] = recipe.digest(signature.reads)
        except UserError as error:
            request.gather(error)
    found["parents"] = parents(request, signature)
    return found


def parents(request: Request, signature: Signature) -> dict[str, Any]:
    """Return role → what that parent contributes to the inputs; faults are gathered, missing parents among them."""
    found = {}
    nodes = {DATA: str(request.data)} if hands_on_rows(request.data) and signature.reads else {}
    for role, path in {**request.parents, **nodes}.items():
        try:
            found[role] = parent_identity(role, path, request.stage, signature)
        except UserError as error:
            request.gather(error)
    for role, families in signature.takes.items():
        told = any(f": {role}: is left out" in fault for fault in request.faults)
        if role not in {*request.parents, *signature.optional} and not told:
            request.faults.append(
                f"command line: --{role} is missing; {request.stage.kind} needs a {' or '.join(families)} model"
            )
    return found

"""What a command asks for: flags and profile, checked, and the digest of everything that goes in.

Nothing heavy is imported here: an unchanged stage ends after this.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import manifest
from pipeline.system import config, hashes
from pipeline.data import recipe as recipes
from pipeline.system.errors import UserError
from pipeline.models.families import family_of

# Keys of the libraries that change where or how loudly a stage runs, never what it learns.
_NEUTRAL = {
    "use_cpu", "report_to", "run_name", "disable_tqdm", "logging_steps", "logging_strategy", "logging_first_step",
    "save_steps", "save_strategy", "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataset_num_proc", "log_level", "project",
}  # fmt: skip
_TEMPLATES = Path(__file__).parent / "templates"


@dataclasses.dataclass
class Request:
    """Flags and profile of one command, and every fault found in them so far."""

    name: str
    parents: list[str]
    output: Path | None
    data: str | None
    asked: dict[str, Any]
    origins: dict[str, str]
    faults: list[str]
    file: Path | None = None  # the profile
    strict: bool = False  # a change of code or library counts
    why: bool = False  # only say what changed
    kept: str = ""  # overrides of the run before that are asked for again

    def gather(self, error: UserError) -> None:
        """Take note of faults and go on, so that all are shown at once."""
        self.faults.extend(fault for fault in error.faults if fault not in self.faults)

    def overrides(self) -> dict[str, Any]:
        """Return what was asked for on the command line alone: flags, data, a parent that is no sibling."""
        flags = {key: self.asked[key] for key, origin in self.origins.items() if origin == "command line"}
        assert self.output
        siblings = self.output.resolve().parent
        foreign = [path for path in self.parents if Path(path).resolve().parent != siblings]
        return {"flags": flags, "data": self.data, "parents": foreign}

    def keep_overrides(self) -> None:
        """Ask again for what a finished stage was made with, as when make only checks it on the way to another."""
        if not self.output or not self.output.is_dir():
            return
        record = manifest.read(self.output) or manifest.read(self.output, manifest.CLAIM) or {}
        kept = record.get("overrides")
        if kept:
            self.asked |= kept["flags"]
            self.origins |= dict.fromkeys(kept["flags"], "command line")
            self.data = self.data or kept["data"]
            self.parents = kept["parents"] or self.parents
            said = [f"--{key} {value}" for key, value in kept["flags"].items()] + [
                f"--parent {path}" for path in kept["parents"]
            ]
            self.kept = ", ".join(said + ([f"--data {kept['data']}"] if kept["data"] else []))

    def settle(self) -> None:
        """Raise UserError with every fault found, if there is one."""
        if self.faults:
            raise UserError(*self.faults)


def read(name: str, argv: Sequence[str]) -> Request:
    """Read the command line and the profile that it names."""
    flags, faults = config.read_flags(argv)
    parents, file = flags.pop("parent"), flags.pop("config", None)
    output, data = flags.pop("output", None), flags.pop("data", None)
    upstream, strict, why = (flags.pop(flag, "") == "yes" for flag in ("upstream", "strict", "why"))
    if output is None:
        faults.append(f"command line: --output is missing; say where {name} should write")
    profile: dict[str, Any] = {}
    try:
        profile = config.read_profile(Path(file)) if file else {}
    except UserError as error:
        faults.extend(error.faults)
    origins = dict.fromkeys(profile, str(file)) | dict.fromkeys(flags, "command line")
    found = Request(
        name,
        parents,
        Path(output) if output else None,
        data,
        profile | flags,
        origins,
        faults,
        Path(file) if file else None,
        strict,
        why,
    )
    if upstream:
        found.keep_overrides()
    return found


def split(request: Request, options: type, defaults: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return our options as their dataclass, and the keys that belong to the library."""
    names = {field.name for field in dataclasses.fields(options)}
    ours = {key: value for key, value in request.asked.items() if key in names}
    return options(**ours), {key: value for key, value in (defaults | request.asked).items() if key not in names}


def template_path(name: str) -> Path:
    """Return the file of a chat template: a path, or the name of one in pipeline/templates."""
    for path in (Path(name), _TEMPLATES / name):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in _TEMPLATES.glob("*.jinja")))
    raise UserError(f"chat_template: {name}: no such file; give a path or one of {known}")


def unaltered(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise UserError naming the files of a finished stage that are no longer those that it made."""
    if faults := manifest.altered(folder, record):
        raise UserError(
            *(f"{folder}: {fault} when {record['stage']} was finished; put it back, or move the folder away and make "
              f"{record['stage']} again" for fault in faults)
        )  # fmt: skip


def finished(runs: Path, stage: str) -> Path:
    """Return the folder of a finished causal stage, to be used as it was made; UserError where there is none."""
    folder = runs / stage
    record = manifest.read(folder)
    if record is None:
        known = ", ".join(sorted(path.parent.name for path in runs.glob("*/manifest.json")))
        raise UserError(f"{folder}: not finished; {f'finished are {known}' if known else 'run make first'}")
    if record["family"] != "causal":
        raise UserError(f"{folder}: a model of family {record['family']} gives no answers; only causal ones do")
    unaltered(folder, record)
    return folder


def parent_identity(parent: str, stage: str, accepts: Sequence[str]) -> dict[str, Any]:
    """Return what a parent contributes to the inputs; UserError if it is missing, unfinished or of another family.

    A finished stage directory is known by its record, another folder by its files, a hub id by its name.
    """
    folder = Path(parent)
    wanted = f"but {stage} takes {' or '.join(accepts) or 'no parent here'}"
    if not folder.is_dir():
        if parent.count("/") == 1 and not parent.startswith((".", "/")) and not folder.parent.exists():
            return {"hub": parent}
        raise UserError(f"--parent {parent}: no such folder; run the stage before {stage}, or give a model folder or hub id")
    record = manifest.read(folder)
    if record is not None:
        if record["family"] not in accepts:
            raise UserError(f"--parent {parent}: {record['stage']} made a model of family {record['family']}, {wanted}")
        unaltered(folder, record)
        return {"stage": record["stage"], "outputs": record["outputs"]}
    if (folder / manifest.CLAIM).exists():
        raise UserError(f"--parent {parent}: that stage is not finished; run it again and it goes on where it was")
    try:
        architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, json.JSONDecodeError):
        raise UserError(f"--parent {parent}: no model folder: config.json is missing or broken") from None
    family = family_of(architectures[0]) if architectures else ""
    if family and family not in accepts:
        raise UserError(f"--parent {parent}: {architectures[0]} is a model of family {family}, {wanted}")
    return {"outputs": manifest.outputs(manifest.files(folder))}


def identity(request: Request, options: Any, arguments: dict[str, Any], recipe: recipes.Recipe, shape: str) -> dict[str, Any]:
    """Return all that a stage's result depends on but its parent, as one JSON value; faults are gathered."""
    ours = dataclasses.asdict(options)
    ours.pop("recipe", None)  # known by its content, not by its name
    for field in dataclasses.fields(options):
        if field.metadata.get("by_content") and Path(str(ours[field.name])).is_dir():
            ours[field.name] = "a folder"
    found: dict[str, Any] = {"stage": request.name, "options": ours}
    found["arguments"] = {key: value for key, value in sorted(arguments.items()) if key not in _NEUTRAL}
    if recipe is not recipes.EMPTY:
        try:
            found["recipe"] = recipe.digest(shape)
        except UserError as error:
            request.gather(error)
    if ours.get("chat_template"):
        try:
            ours["chat_template"] = hashes.sha256(template_path(ours["chat_template"]))
        except UserError as error:
            request.gather(error)
    return found


def parent(request: Request, accepts: Sequence[str]) -> dict[str, Any]:
    """Return what the parent contributes to the inputs, under the key `parent`; faults are gathered."""
    found = {}
    for path in request.parents:
        try:
            found["parent"] = parent_identity(path, request.name, accepts)
        except UserError as error:
            request.gather(error)
    return found

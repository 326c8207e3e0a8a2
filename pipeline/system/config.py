"""Strict configuration: our defaults < profile < command line, every fault at once, nothing heavy imported.

A stage has a small frozen dataclass of its own options; every other key belongs to one class of a
library (`TrainingArguments`, `SFTConfig`, …) and is checked against that class only when the stage
is about to run, because importing it costs seconds.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import enum
import functools
import importlib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.system.arguments import RESERVED, SENSIBLE, inherited, unread
from pipeline.system.errors import UserError
from pipeline.system.words import meant

_MOST_VALUES = 100_000  # of a YAML file, aliases written out


_PATHS = ("config", "output", "data", "runs", "node", "profile", "hub")
SWITCHES = ("upstream", "strict", "why", "check")  # flags of every stage that are yes or no


def option(
    default: Any,
    text: str,
    at_least: float | None = None,
    at_most: float | None = None,
    by_content: bool = False,
    omitted: bool = False,
    needs: tuple[str, Any] | None = None,
    unless: tuple[str, Any] | None = None,
    beside: str = "",
) -> Any:
    """Declare one of our options with its default, the line that --help shows, and its bounds.

    `by_content`: a file given here enters the stage's inputs by its bytes and not by its name; a folder by what the
    stage's `sources` lists of it. `omitted`: at its default it does not enter the inputs, so that nodes which were
    finished before there was such an option stay up to date. `needs`: another of our options, and the value with which
    alone this one is read; `unless`: one with which it is not. `beside`: the role of a parent without which it is not read.
    """
    metadata = {
        "help": text,
        "at_least": at_least,
        "at_most": at_most,
        "by_content": by_content,
        "omitted": omitted,
        "needs": needs,
        "unless": unless,
        "beside": beside,
    }
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def default(field: dataclasses.Field[Any]) -> Any:
    """Return the default of one of our options."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def normal(value: Any) -> Any:
    """Return a value in the form that enters digests: `2e-5`, which YAML reads as text, and 3.0 become numbers."""
    if isinstance(value, str):
        try:
            number = float(value) if value[:1] in "+-.0123456789" else math.nan
        except ValueError:
            return value
        return normal(number) if math.isfinite(number) else value
    if isinstance(value, datetime.date):  # YAML makes dates of what looks like one
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    return value


def read_yaml(text: str) -> Any:
    """Return what a YAML text holds; yaml.YAMLError also where it is nested too deeply, or grows beyond reason by its aliases."""
    try:
        loader = yaml.SafeLoader(text)
        if (node := loader.get_single_node()) is None:
            return None
        if _size(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases make more than {_MOST_VALUES:,} values of it")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply, or an alias stands within what it names") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node has, those of an alias counted wherever it stands."""
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [child for item in inner for child in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def refuse_unread(options: Any, names: Iterable[str], whom: str) -> None:
    """Raise UserError for options that were given and that nobody reads. `whom`: who does not, as in `the task classification`."""
    usual = type(options)()
    if unread := [name for name in names if getattr(options, name) != getattr(usual, name)]:
        raise UserError(*(f"{name}: is not read by {whom}; leave it out" for name in unread))


def named_in(text: str, values: Mapping[str, Any]) -> str:
    """Return the settings that a library's complaint is about, by their keys or by words among their values, for its line."""
    found = []
    for key, value in values.items():
        words = [key, *([value] if isinstance(value, str) and len(value) > 3 else [])]
        if any(re.search(rf"(?<![\w/]){re.escape(word)}(?![\w/])", text, re.IGNORECASE) for word in words):
            found.append(f"{key}: {value}")
    return f" ({', '.join(found)})" if found else ""


def _complaint(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """Return what a parser of YAML complains of, with line and column where it tells them."""
    if not isinstance(error, yaml.MarkedYAMLError) or not error.problem_mark:
        return " ".join(str(error).split())
    where = f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return f"{', '.join(filter(None, [error.context, error.problem]))} ({where})"


def read_profile(path: Path) -> dict[str, Any]:
    """Return the flat mapping in a profile; UserError if the file is missing, not YAML or not a mapping."""
    try:
        loaded = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such profile file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {_complaint(error)}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(loaded).__name__}")
    return {str(key): normal(value) for key, value in loaded.items()}


def read_flags(argv: Sequence[str], roles: Sequence[str] = ("parent",)) -> tuple[dict[str, Any], list[str]]:
    """Split `--key value` and `--key=value` into a mapping; paths (of --config, --output, --data, roles and the like) stay as they are.

    The second part of the result holds the faults: words that belong to no flag, flags without a value or given twice.
    """
    flags: dict[str, Any] = {}
    faults: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            faults.append(f"command line: {word!r} belongs to no flag; write --key value")
            continue
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                faults.append(f"command line: --{key} needs a value")
                continue
            text = words.pop(0)
        if key in flags:
            faults.append(f"command line: --{key} is given twice: {flags[key]} and {text}")
        elif key in (*_PATHS, *roles):
            flags[key] = text
        elif key in SWITCHES:
            if text not in ("yes", "no"):
                faults.append(f"command line: --{key}: expected yes or no, found {text!r}")
            flags[key] = text
        else:
            try:
                flags[key] = normal(read_yaml(text)) if text else ""
            except yaml.YAMLError:
                faults.append(f"command line: --{key} {text!r} can't be read as a value")
    return flags, faults


def only(
    known: Sequence[str], argv: Sequence[str], texts: Sequence[str] = (), switches: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Split the flags of a command that has these few and no profile; the second part holds the faults, unknown flags too.

    `texts`: flags that stay as they are written, such as a time, of which YAML would make a number. `switches`: those that
    are yes or no, which become True or False, and are False where nobody says.
    """
    flags, faults = read_flags(argv, texts)
    for key in switches:
        if not isinstance(flags.setdefault(key, False), bool):  # YAML's yes and no
            faults.append(f"command line: --{key}: expected yes or no, found {flags[key]!r}")
    verb = "are" if len(known) > 1 else "is"
    unknown = [key for key in flags if key not in known]
    return flags, faults + [f"command line: --{key}: unknown flag; known {verb} --{', --'.join(known)}" for key in unknown]


def fits(value: Any, hint: Any) -> bool:
    """Say whether a plain YAML value can stand for an annotation (unions, literals, enums, containers)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint in (None, type(None)):
        return value is None
    if origin is tuple or hint is tuple or origin is list:
        inner = arguments[0] if arguments else Any
        return isinstance(value, list) and all(fits(item, inner) for item in value)
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    return isinstance(value, hint) if isinstance(hint, type) else True


def _named(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def library_class(path: str) -> type:
    """Import the class that a dotted path names, such as `trl.SFTConfig`."""
    module, _, name = path.rpartition(".")
    return typing.cast(type, getattr(importlib.import_module(module), name))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def check(
    values: Mapping[str, Any],
    origins: Mapping[str, str],
    options: type,
    library: str | None,
    loose: bool = False,
    ignores: Mapping[str, str] = {},
) -> list[str]:
    """Return every fault in `values`: unknown keys with the nearest known name, wrong types, reserved keys.

    `origins` says where each key came from. With `loose` the library is not imported and only our own
    options are checked. `ignores`: keys of that class which this stage does not read → why.
    """
    reserved = {**RESERVED, **ignores}
    hints = _hints(options)
    known = {field.name: hints[field.name] for field in dataclasses.fields(options)}
    most = {field.name: field.metadata["at_most"] for field in dataclasses.fields(options)}
    least = {"max_length": 2} | {field.name: field.metadata["at_least"] for field in dataclasses.fields(options)}
    ours = set(known)
    usual: dict[str, Any] = {}
    choices: dict[str, list[Any]] = {}
    if library and not loose:
        cls = library_class(library)
        theirs, fields = _hints(cls), dataclasses.fields(cls)
        usual = {field.name: field.default for field in fields}
        choices = {field.name: list(field.metadata.get("choices") or ()) for field in fields if field.name not in ours}
        known = {field.name: theirs[field.name] for field in fields} | known
    faults = []
    for key, value in values.items():
        where = origins.get(key, "defaults")
        if key in reserved and key not in ours:
            faults.append(f"{where}: {key}: can't be set here; {reserved[key]}")
        elif key not in known:
            if loose and library:
                continue
            every = "known are our options" + (f" and those of {library}" if library else "")
            remedy = meant(key, [name for name in known if name not in reserved], every)
            faults.append(f"{where}: {key}: unknown key; {remedy}")
        elif not fits(value, known[key]) and (key in ours or not fits([value], known[key])):  # trl makes a list of one name
            faults.append(f"{where}: {key}: expected {_named(known[key])}, found {value!r}")
        elif choices.get(key) and value is not None and value not in choices[key]:
            faults.append(f"{where}: {key}: expected {' or '.join(map(str, choices[key]))}, found {value!r}")
        elif least.get(key) is not None and value is not None and value < least[key]:
            faults.append(f"{where}: {key}: expected at least {least[key]}, found {value}")
        elif key in SENSIBLE and key not in ours and not all(SENSIBLE[key][0](one) for one in _numbers(value)):
            faults.append(f"{where}: {key}: {value}: {SENSIBLE[key][1]}")
        elif most.get(key) is not None and value > most[key]:
            faults.append(f"{where}: {key}: expected at most {most[key]}, found {value}")
        elif told := _idle(key, values, origins, options) if key in ours else unread(key, values, usual, origins):
            faults.append(f"{where}: {key}: is {told}; leave it out")
    return faults


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, (int, float))]


def _idle(key: str, values: Mapping[str, Any], origins: Mapping[str, str], options: type) -> str:
    """Return in words under which other option of ours one of them is read or not, where that leaves it unread; or "".

    A control, or a flag, may choose otherwise than the profile from which it has the key.
    """
    fields = {field.name: field for field in dataclasses.fields(options)}
    needs, unless = (fields[key].metadata[name] if key in fields else None for name in ("needs", "unless"))
    for (other, value), wanted in [(one, one is needs) for one in (needs, unless) if one]:
        idle = (values.get(other, default(fields[other])) == value) != wanted
        if idle and not inherited(key, other, values, origins):
            return f"read only with {other}: {value}" if wanted else f"not read with {other}: {value}"
    return ""


def explain(name: str, text: str, options: type, library: str | None, roles: Mapping[str, str] | None = None) -> str:
    """Return what --help prints: the story, our options with their defaults, and where the rest comes from.

    `roles`: of a stage, the parents that it takes and what may stand for each.
    """
    lines = [text.strip(), "", f"options of {name} (in the profile as `key: value`, here as --key value):"]
    for field in dataclasses.fields(options):
        default = "{}" if field.default is dataclasses.MISSING else field.default
        lines.append(f"  {field.name:<22} {field.metadata['help']} [{default}]")
    lines.append("")
    if roles is None:
        lines.append("also: --config FILE (a file with these options)")
    else:
        lines.append(
            "always: --config FILE (the node's file in a profile)  --output DIR (the node's folder, named like the node)"
        )
        lines += [f"        --{role} {told}" for role, told in roles.items()]
        lines += [
            "also:   --why yes (only say what changed)  --strict yes (a change of code or library counts)",
            "        --upstream yes (keep the flags that the node was made with)  --check yes (check the whole profile before)",
        ]
    if library:
        lines.append(f"every other key is one of {library}, under its own name and with its own meaning")
    return "\n".join(lines)

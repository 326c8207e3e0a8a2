"""The record of a finished node: written last, by an atomic rename, so that its presence means complete."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import ROOT
from pipeline.system import hashes, process
from pipeline.system.errors import UserError

NAME, CLAIM = hashes.RECORD, hashes.CLAIM
PUSHED = "pushed"  # what a record that left for a hub names: the files that left with it, by sha256
VERSION = 3
_LOADED = (".safetensors", ".bin", ".json", ".jinja", ".model", ".py", ".parquet")
_BLOCKS = ("body", "orelse", "finalbody")  # of a statement
_REPORTED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees either the old one or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(folder: Path, name: str = NAME) -> dict[str, Any] | None:
    """Return the record in a node's folder, or None if there is none; UserError if it is not one of ours."""
    path = folder / name
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a whole JSON file ({error}); move the folder away and run the stage again") from None
    if not isinstance(record, dict) or "inputs" not in record:
        raise UserError(f"{path}: not a record of tristage; give another --output or move the folder away")
    if record.get("version", VERSION) != VERSION:
        raise UserError(f"{path}: written by another version of tristage; move the folder away and run the stage again")
    return record


def altered(folder: Path, record: Mapping[str, Any], sha256: Callable[[Path], str] = hashes.sha256) -> list[str]:
    """Return in words how a finished node's files differ from its record: `model.safetensors is not the file that was made`.

    A file that is not in the record counts where a library would load it. Of a node that was pushed only what left with it
    is expected.
    """
    faults = []
    there = hashes.handed_on(folder)
    left = record.get(PUSHED)
    for name, entry in record["files"].items():
        if left is not None and left.get(name) != entry["sha256"]:
            continue
        if name not in there:
            faults.append(f"{name} is missing")
        elif (folder / name).stat().st_size != entry["size"] or sha256(folder / name) != entry["sha256"]:
            faults.append(f"{name} is not the file that was made")
    strangers = sorted(name for name in there - set(record["files"]) if name.endswith(_LOADED))
    return faults + [f"{name} was added" for name in strangers]


def commit() -> dict[str, Any]:
    """Return the commit that the project stands at, and whether the tree differs from it."""

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def sources(*files: Path) -> dict[str, str]:
    """Return name → sha256 of files and of those of our own modules that they import, however deep.

    Imports within functions count too, those for type checkers don't. A template (`*.jinja`) counts with the modules beside it.
    """
    found: set[Path] = set()
    pending = [path.resolve() for path in files]
    while pending:
        path = pending.pop()
        if path not in found:
            found |= {path, *path.parent.glob("*.jinja")}
            pending += _imported(path)
    return {path.relative_to(ROOT).as_posix(): hashes.sha256(path) for path in sorted(found) if path.is_relative_to(ROOT)}


@cache
def _imported(path: Path) -> list[Path]:
    """Return the files of our own modules that one imports, with the packages that they lie in."""
    found: dict[Path, None] = {}
    for statement in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
        for name in _names(statement):
            parts = name.split(".")
            for length in range(1, len(parts) + 1):
                place = ROOT.joinpath(*parts[:length])
                for candidate in (place / "__init__.py", place.with_suffix(".py")):
                    if parts[0] == "pipeline" and candidate.is_file():
                        found[candidate] = None
    return list(found)


def _statements(block: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a block and of those within it, but for what only type checkers read; no expression holds any."""
    for statement in block:
        yield statement
        typed = isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING"
        for name in ("orelse",) if typed else _BLOCKS:
            yield from _statements(getattr(statement, name, ()))
        for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
            yield from _statements(part.body)


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that can change a result."""
    return {"python": platform.python_version()} | {name: _installed(name) for name in _REPORTED}


@cache  # each takes a millisecond to find, and a `make` asks for every node
def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def hardware() -> dict[str, Any]:
    """Return what the node ran on, without the names of host or user."""
    import torch

    accelerators = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        accelerators.append("mps")
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "accelerators": accelerators,
        "threads": torch.get_num_threads(),
        "processes": process.count(),
    }


def claim(folder: Path, begun: Mapping[str, Any]) -> None:
    """Mark a node's folder as under way for a request."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CLAIM, begun)


def _on_disk(path: Path) -> str:
    """Return the sha256 of a file whose bytes have reached the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return hashes.read(path)


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Return `hashes.files` of a folder, each read anew and safe from a power cut."""
    return hashes.files(folder, _on_disk)


def seal(folder: Path, result: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the record with the files' digests and write it, which makes the node a finished one.

    `result`: the folder inside the node's folder whose files move up into it.
    """
    found = listing(result)
    for name in found:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (result / name).replace(folder / name)
    shutil.rmtree(result)
    whole = {"version": VERSION, **record, "files": found, "outputs": hashes.outputs(found)}
    write_json(folder / NAME, whole)
    return whole

"""The record of a finished stage: written last, by an atomic rename, so that its presence means complete."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline import ROOT
from pipeline.system import hashes
from pipeline.system.errors import UserError

NAME = "manifest.json"
CLAIM = "claim.json"
VERSION = 2
_LOADED = (".safetensors", ".bin", ".json", ".jinja", ".model", ".py")
_NOT_OUTPUT = (NAME, CLAIM, "log.jsonl")  # what a stage directory holds beside the model itself
_REPORTED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers")


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form, in hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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
    """Return a stage directory's record, or None if there is none; UserError if it is not one of ours."""
    path = folder / name
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole JSON file ({error}); move the folder away and run the stage again") from None
    if not isinstance(record, dict) or "inputs" not in record:
        raise UserError(f"{path}: not a record of tristage; give another --output or move the folder away")
    if record.get("version", VERSION) != VERSION:
        raise UserError(f"{path}: written by another version of tristage; move the folder away and run the stage again")
    return record


def files(folder: Path, sha256: Callable[[Path], str] = hashes.sha256) -> dict[str, dict[str, Any]]:
    """Return name → sha256 and size of every file that a stage hands on; hashes of unchanged files are remembered ones."""
    return {
        name: {"sha256": sha256(folder / name), "size": (folder / name).stat().st_size} for name in sorted(_handed_on(folder))
    }


def _handed_on(folder: Path) -> set[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    others = ("checkpoint-", "runs/", ".")
    return {name for name in names if name not in _NOT_OUTPUT and not name.startswith(others) and not name.endswith(".partial")}


def altered(folder: Path, record: Mapping[str, Any], sha256: Callable[[Path], str] = hashes.sha256) -> list[str]:
    """Return in words how a finished stage's files differ from its record: `model.safetensors was edited`.

    A file that nobody recorded counts where a library would load it.
    """
    faults = []
    there = _handed_on(folder)
    for name, entry in record["files"].items():
        if name not in there:
            faults.append(f"{name} is missing")
        elif (folder / name).stat().st_size != entry["size"] or sha256(folder / name) != entry["sha256"]:
            faults.append(f"{name} is not the file that was made")
    strangers = sorted(name for name in there - set(record["files"]) if name.endswith(_LOADED))
    return faults + [f"{name} was added" for name in strangers]


def outputs(listing: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the digest over the files of a stage."""
    return digest({name: entry["sha256"] for name, entry in listing.items()})


def commit() -> dict[str, Any]:
    """Return the commit that the project stands at, and whether the tree differs from it."""

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def sources(script: str) -> dict[str, str]:
    """Return name → sha256 of our own code that a stage runs: all of pipeline/, and `script` in stages/."""
    found = [path for path in (ROOT / "pipeline").rglob("*") if path.suffix in (".py", ".jinja")]
    own = ROOT / "stages" / script
    return {path.relative_to(ROOT).as_posix(): hashes.sha256(path) for path in sorted([*found, *([own] if script else [])])}


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that can change a result."""
    found = {"python": platform.python_version()}
    for name in _REPORTED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def hardware() -> dict[str, Any]:
    """Return what the stage ran on, without the names of host or user."""
    import torch

    accelerators = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        accelerators.append("mps")
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "accelerators": accelerators,
        "threads": torch.get_num_threads(),
    }


def claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Mark a stage directory as under way for what was asked."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CLAIM, asked)


def _on_disk(path: Path) -> str:
    """Return the sha256 of a file whose bytes have reached the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return hashes.read(path)


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Return `files` of a folder, each read anew and safe from a power cut."""
    return files(folder, _on_disk)


def seal(folder: Path, result: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the record with the files' digests and write it, which makes the stage a finished one.

    `result`: the folder inside the stage directory whose files move up into it.
    """
    found = listing(result)
    for name in found:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (result / name).replace(folder / name)
    shutil.rmtree(result)
    whole = {"version": VERSION, **record, "files": found, "outputs": outputs(found)}
    write_json(folder / NAME, whole)
    return whole

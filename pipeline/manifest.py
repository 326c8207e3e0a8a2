"""The record of a finished stage: written last, by an atomic rename, so that its presence means complete."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import ROOT
from pipeline.errors import UserError

NAME = "manifest.json"
CLAIM = "claim.json"
VERSION = 1
_NOT_OUTPUT = (NAME, CLAIM, "log.jsonl")  # what a stage directory holds beside the model itself
_REPORTED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers")


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole JSON file ({error}); move the folder away and run the stage again") from None
    if not isinstance(record, dict) or "inputs" not in record:
        raise UserError(f"{path}: not a record of tristage; give another --output or move the folder away")
    return record


def files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return name → sha256 and size of every file that a stage hands on."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        ours = name not in _NOT_OUTPUT and not name.startswith(("checkpoint-", "runs/", ".")) and not name.endswith(".partial")
        if path.is_file() and ours:
            found[name] = {"sha256": sha256_file(path), "size": path.stat().st_size}
    return found


def outputs(listing: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the digest over the files of a stage."""
    return digest({name: entry["sha256"] for name, entry in listing.items()})


def code() -> dict[str, Any]:
    """Return the commit that the project stands at, and whether the tree differs from it."""

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


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
    """Mark a stage directory as under way for what was asked, by this process."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CLAIM, {**asked, "pid": os.getpid(), "started": _started(os.getpid()), "host": socket.gethostname()})


def alive(claimed: Mapping[str, Any]) -> bool:
    """Say whether the process of a claim is another one on this machine that still runs."""
    if claimed["host"] != socket.gethostname() or claimed["pid"] == os.getpid():
        return False
    return claimed["started"] is not None and _started(claimed["pid"]) == claimed["started"]


def _started(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def seal(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the record with the files' digests, write it last, and take the claim away."""
    listing = files(folder)
    whole = {"version": VERSION, **record, "files": listing, "outputs": outputs(listing)}
    write_json(folder / NAME, whole)
    (folder / CLAIM).unlink(missing_ok=True)
    return whole

"""The files of a new profile and its recipes: YAML with a reason beside each line, written all or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.chain.starter import Lines
from pipeline.system.errors import UserError

_COLUMN = 44  # where the reasons begin


def scalar(value: Any) -> str:
    """Return a value as YAML writes it on one line, quoted where that is needed."""
    written = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return written.removesuffix("...\n").strip()


def node(title: str, lines: Lines) -> str:
    """Return the file of a node: what it is, then a key a line with its reason."""
    told = [f"{f'{key}: {scalar(value)}':<{_COLUMN - 1}} # {reason}" for key, (value, reason) in lines.items()]
    return "\n".join([f"# {title}", *told, ""])


def write(folder: Path, files: Mapping[Path, str], profile: Path) -> None:
    """Put files in their places by way of `folder`, which lies beside them: all, or none; `profile` is moved last, as a whole.

    A file that is there already with the same text, as a write that was killed leaves it, is no obstacle.
    """
    made: list[Path] = []
    try:
        (folder / profile.name).mkdir(parents=True)
        for path, text in files.items():
            place = folder / profile.name / path.name if path.parent == profile else folder / path.name
            place.write_text(text, encoding="utf-8")
        for path in files:
            if path.parent != profile and not path.exists():
                (folder / path.name).rename(path)
                made.append(path)
        (folder / profile.name).rename(profile)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def obstacles(files: Mapping[Path, str], profile: Path) -> list[str]:
    """Return which files are there already and would be lost."""
    found = [path for path, text in files.items() if path.exists() and path.read_text(encoding="utf-8") != text]
    return [f"{path}: is there already; nothing is overwritten, so give another PROFILE or move it away"
            for path in ([profile] if profile.exists() else found)]  # fmt: skip


def settle(faults: list[str]) -> None:
    """Raise UserError with every fault, each once, if there is one."""
    if faults:
        raise UserError(*dict.fromkeys(faults))

"""Work of a node other than training, kept on disk block by block, so that a kill loses one block at most.

A block is one JSON file, written at once and with a digest of its content. Its mark says what it was made from, so that
one that was made from anything else, such as other weights, can be told and made again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.chain import manifest
from pipeline.system import hashes

_FOLDER = ".blocks"  # in a node's folder, until the node is finished


class Block(NamedTuple):
    """A value that was made from what the mark says."""

    mark: str
    value: Any


def keep(output: Path, name: str, block: Block) -> None:
    """Write a block of a node."""
    path = _path(output, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_json(path, {**block._asdict(), "sha256": hashes.digest(list(block))})


def kept(output: Path, name: str, say: Callable[[str], None]) -> Block | None:
    """Return a block of a node; None where there is none, or it is damaged, which is said."""
    try:
        found = json.loads(_path(output, name).read_text(encoding="utf-8"))
        block, sha256 = Block(found["mark"], found["value"]), found["sha256"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        sha256 = ""
    if sha256 and sha256 == hashes.digest(list(block)):
        return block
    say(f"block {name} is damaged; it is skipped")
    return None


def any_kept(output: Path) -> bool:
    """Say whether a node has a block to go on from."""
    return any((output / _FOLDER).glob("*.json"))


def forget(output: Path) -> None:
    """Remove all blocks of a node."""
    shutil.rmtree(output / _FOLDER, ignore_errors=True)


def _path(output: Path, name: str) -> Path:
    return output / _FOLDER / f"{name}.json"

"""Checkpoints that can be trusted: sealed once they are whole, pruned only then, skipped where they are not.

The Trainer writes a checkpoint file by file straight into its folder, prunes the old ones within the
save, and on resuming takes the newest folder whatever is in it. So pruning is ours, and a folder counts
only with a seal: the name, size and sha256 of each of its files, written after all of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.chain import blocks, manifest
from pipeline.system import hashes
from pipeline.system.errors import UserError
from pipeline.system.optimizers import most_state

SEAL = "seal.json"
TRACKED = ".tracking.json"  # under which ids a node that is under way reports to trackers
_DAMAGED = ".damaged-"
_MARGIN = 1.1  # tokenizer, scheduler and random states beside the weights


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a stage directory, the newest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))


def seal(checkpoint: Path) -> None:
    """Record every file of a checkpoint, after each has reached the disk."""
    (checkpoint / SEAL).unlink(missing_ok=True)
    manifest.write_json(checkpoint / SEAL, manifest.listing(checkpoint))


def fault(checkpoint: Path) -> str:
    """Return why a checkpoint can't be trusted, or an empty string."""
    try:
        sealed = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        expected = {checkpoint / str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in sealed.items()}
    except FileNotFoundError:
        return "was not saved to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"is damaged: {SEAL} can't be read"
    for path, (size, sha256) in expected.items():
        if not path.is_file():
            return f"is damaged: {path.name} is missing"
        if path.stat().st_size != size or hashes.read(path) != sha256:
            return f"is damaged: {path.name} is not what was saved"
    return ""


def sweep(folder: Path, say: Callable[[str], None]) -> None:
    """Take away the checkpoints that are newer than the newest whole one, and say why; and older torn ones.

    A torn one is removed, since nothing can be made of it; a damaged one is kept under another name
    until the stage is finished.
    """
    found = False
    for checkpoint in _checkpoints(folder):
        if found and (checkpoint / SEAL).exists():
            continue
        wrong = fault(checkpoint)
        found = found or not wrong
        if not wrong:
            continue
        say(f"{checkpoint.name} {wrong}; it is skipped")
        if (checkpoint / SEAL).exists():
            checkpoint.rename(checkpoint.with_name(_DAMAGED + checkpoint.name))
        else:
            shutil.rmtree(checkpoint)


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint, or None; after `sweep` it is a whole one."""
    return next(iter(_checkpoints(folder)), None)


def prune(folder: Path, keep: int | None, best: Path | None = None) -> None:
    """Remove all but the best and the newest `keep` sealed checkpoints, at least one; None keeps all."""
    sealed = [path for path in _checkpoints(folder) if (path / SEAL).exists()]
    for old in sealed[max(keep, 1) :] if keep else []:
        if old.name != (best.name if best else ""):
            discard(old)


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint, its seal first: half removed it is torn, not damaged."""
    (checkpoint / SEAL).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def clear(folder: Path) -> None:
    """Remove what a finished stage needs no longer."""
    for old in [*_checkpoints(folder), *folder.glob(f"{_DAMAGED}*")]:
        discard(old)
    shutil.rmtree(folder / ".data", ignore_errors=True)
    (folder / TRACKED).unlink(missing_ok=True)
    blocks.forget(folder)


def needed(model: Any, optimizer: str) -> tuple[int, int]:
    """Return the bytes of one checkpoint and of the final model in fp32, both a little more than they will be."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in model.parameters())
    return int(trained * (4 + most_state(optimizer)) * _MARGIN), int(4 * whole * _MARGIN)


def has_room(folder: Path, model: Any, optimizer: str, saves: int, keep: int | None) -> None:
    """Raise UserError where the disk has no room for the checkpoints to come, `keep` at a time, and the final model."""
    one, final = needed(model, str(optimizer))
    missing = max(0, min(saves, (keep or saves) + 1) - len(_checkpoints(folder)))
    wanted, free = missing * one + final, shutil.disk_usage(folder).free
    if free < wanted:
        raise UserError(
            f"--output {folder}: {_size(free)} are free, but {missing} checkpoints of {_size(one)} and the model of "
            f"{_size(final)} need {_size(wanted)}; free some, or lower save_total_limit"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def kept(arguments: Any) -> int | None:
    """Take `save_total_limit` out of the Trainer's hands and return it."""
    limit: int | None = arguments.save_total_limit
    arguments.save_total_limit = None
    return limit

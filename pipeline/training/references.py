"""The parent's log-probability of every token of every answer: computed once, kept on disk, read again where nothing changed.

They lie beside the nodes of a profile, in `.references/DIGEST.safetensors`. The digest covers what the numbers depend on:
the weights that were loaded, the encoded rows, and how and on what the forward pass is computed. Rate, β, losses and
epochs are not among it. `make clean` removes the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.system import process
from pipeline.system.words import counted

if TYPE_CHECKING:
    from pipeline.chain.run import Run

FOLDER = ".references"
SUM = "sha256"  # of the numbers, in the file's own header
_AT_ONCE = {"cpu": 1024}  # tokens of a batch, padding included
_ON_ACCELERATOR = 16384

Values = dict[str, list[np.ndarray]]  # column of answers → for each row the log-probabilities of its tokens


def kept(
    run: Run,
    dataset: Any,
    columns: Sequence[str],
    depends: Mapping[str, Any],
    device: str,
    score: Callable[[list[Any]], Values],
) -> Values:
    """Return the log-probabilities of the answers in `columns`, from disk where they are there already.

    `depends`: what they depend on beside the rows, such as the weights. `score`: rows → their values. Each process
    scores its share of the batches, which are the same however many processes there are.
    """
    from accelerate.utils import broadcast_object_list

    lengths = {column: [len(ids) for ids in dataset[column]] for column in columns}
    most = _AT_ONCE.get(device, _ON_ACCELERATOR)
    name = digest(dataset, columns, {**depends, "tokens": most})
    path = run.output.parent / FOLDER / f"{name}.safetensors"
    there = [read(path, lengths, run.say) if run.main else None]
    if process.count() > 1:
        broadcast_object_list(there)
    flat = there[0]
    run.record["reference"] = {"digest": name, "reused": flat is not None}
    if flat is None:
        run.say(f"reference: one pass of the parent over {counted(len(dataset), 'row')}")
        flat = _computed(dataset, columns, most, score)
        if run.main:
            write(path, flat)
    run.say(f"reference: kept{' (reused)' if run.record['reference']['reused'] else ''} in {path}")
    return {column: np.split(flat[column], np.cumsum(lengths[column])[:-1]) for column in columns}


def kept_and_moved(arguments: Any) -> list[str]:
    """Return what is at fault where a reference is to be kept although it moves."""
    if arguments.sync_ref_model and arguments.precompute_ref_log_probs:
        return ["precompute_ref_log_probs: sync_ref_model moves the reference, so it can't be kept; leave one of them out"]
    return []


def identity(model: Any) -> str:
    """Return the sha256 of a model's weights and configuration, in hex."""
    import torch

    settings = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    total = hashlib.sha256(json.dumps([type(model).__name__, settings], sort_keys=True, default=str).encode())
    for name, weights in sorted(model.state_dict().items()):
        total.update(f"{name} {weights.dtype} {list(weights.shape)}".encode())
        total.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def digest(dataset: Any, columns: Sequence[str], depends: Mapping[str, Any]) -> str:
    """Return the sha256 of the encoded rows and of what else the numbers depend on, libraries and processor included."""
    import torch

    from pipeline.chain import manifest
    from pipeline.data.image_inputs import PIXEL_COLUMN

    versions = manifest.versions()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    around = {"libraries": [versions[name] for name in ("torch", "transformers", "trl")], "processor": where}
    total = hashlib.sha256(json.dumps({**depends, **around}, sort_keys=True).encode())
    table = dataset.select_columns(["prompt_ids", *columns]).with_format("arrow")[:]
    for name in table.column_names:
        ids = table[name].combine_chunks()
        for numbers in (ids.value_lengths(), ids.flatten()):
            total.update(numbers.to_numpy().tobytes())
    for row in dataset if PIXEL_COLUMN in dataset.column_names else ():
        total.update(len(row[PIXEL_COLUMN]).to_bytes(8, "little") + row[PIXEL_COLUMN])
    return total.hexdigest()


def _computed(dataset: Any, columns: Sequence[str], most: int, score: Callable[[list[Any]], Values]) -> dict[str, np.ndarray]:
    """Return column → the values of all rows, one after another; rows of like length are scored together."""
    from accelerate.utils import gather_object

    shares: list[tuple[list[int], Values]] = []
    for rows in _batches(dataset["length"], most)[process.rank() :: process.count()]:
        shares.append((rows, score([dataset[row] for row in rows])))
    if process.count() > 1:
        shares = gather_object(shares)
    by_row = {
        column: dict(pair for rows, values in shares for pair in zip(rows, values[column], strict=True)) for column in columns
    }
    return {column: np.concatenate([by_row[column][row] for row in range(len(dataset))]) for column in columns}


def _batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Return the rows in batches by length, the longest first; two answers of the longest row's length fit `most` tokens."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches, start = [], 0
    while start < len(order):
        size = max(1, most // (2 * lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


def write(path: Path, values: dict[str, np.ndarray]) -> None:
    """Write the numbers with their sum, so that a reader sees all of them or no file."""
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(save(values, {SUM: _sum(values)}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path, lengths: dict[str, list[int]], say: Callable[[str], None]) -> dict[str, np.ndarray] | None:
    """Return what is kept, or None where there is no file, or one that is not as it was written, which is said."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            named = (file.metadata() or {}).get(SUM)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError):
        values, named = {}, None
    if named == _sum(values) and {name: len(found) for name, found in values.items()} == {
        name: sum(given) for name, given in lengths.items()
    }:
        return values
    say(f"reference: {path} is damaged and is computed anew")
    return None


def _sum(values: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in sorted(values):
        total.update(name.encode() + values[name].tobytes())
    return total.hexdigest()

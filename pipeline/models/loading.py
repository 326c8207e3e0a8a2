"""Models from a folder or hub id, by the library, whose report of the load is read strictly.

The library only logs what it could not fill or place, and trains on: a tensor that is missing stays random, one that is
renamed counts as missing and unexpected, and layers beyond those of the configuration are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.system.errors import UserError

_SHOWN = 3  # names of tensors in a refusal
_POOLER = ("pooler",)  # a head on the first token that many encoders carry or lack; nothing here reads it
_ADAPTER = "adapter_config.json"


def from_pretrained(auto: Any, folder: str, new: Sequence[str] = (), role: str = "parent", **how: Any) -> Any:
    """Return a model of an Auto class in fp32, every tensor of which lies in the folder, and which has a place for each.

    `new`: names of modules that may begin at random, such as a head. A head of the folder that the class does not have is
    left out. `role`: of the model, for a refusal. Raises UserError naming the tensors, or saying why nothing can be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    if (Path(folder) / _ADAPTER).is_file():
        raise UserError(
            f"--{role} {folder}: {_ADAPTER} lies beside the weights, and the library would put that adapter on the model; "
            "take it away, or merge it first (peft's merge_and_unload)"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what the library would print of its report is read here
    try:
        model, told = auto.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **how
        )
    except (RuntimeError, SafetensorError) as error:  # of sizes that differ it says no more than that they do
        raise UserError(f"--{role} {folder}: {_sizes(folder, error)}") from None
    finally:
        logging.set_verbosity(verbosity)
    missing = [name for name in sorted(told["missing_keys"]) if not _part_of(name, (*new, *_POOLER))]
    extra = [name for name in sorted(told["unexpected_keys"]) if _has_place(model, name)]
    found = [f"lack {_named(missing)}, which would begin at random"] * bool(missing)
    found += [f"hold {_named(extra)}, which would be left out"] * bool(extra)
    if found:
        raise UserError(
            f"--{role} {folder}: its weights {' and '.join(found)}; config.json and the weights don't belong together, or tensors "
            "were renamed or lost"
        )
    return model


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _part_of(name: str, modules: Sequence[str]) -> bool:
    return any(part in modules for part in name.split("."))


def _has_place(model: Any, name: str) -> bool:
    """Say whether a tensor belongs to the model's body, or to a module that the model has; else it is of a head of another task."""
    if _part_of(name, _POOLER):
        return False
    known = {child for child, _ in model.named_children()}
    body = {model.base_model_prefix} & known or known  # a bare body has no prefix
    first, owner = name.partition(".")[0], name.rpartition(".")[0]
    return first in body or (bool(owner) and any(module == owner for module, _ in model.named_modules()))


def _sizes(folder: str, error: Exception) -> str:
    """Return in words why tensors did not fit."""
    said = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in said or "size mismatch" in said:
        return "tensors of its weights have other sizes than config.json says; they don't belong together"
    return f"can't be loaded ({said[:200]})"

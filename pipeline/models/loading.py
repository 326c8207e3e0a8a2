"""Models from a folder or hub id, by the library, whose report of the load is read strictly.

The library only logs what it could not fill or place, and trains on: a tensor that is missing stays random, one that is
renamed counts as missing and unexpected, and layers beyond those of the configuration are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.system.errors import UserError

_SHOWN = 3  # names of tensors in a refusal
_POOLER = ("pooler",)  # a head on the first token that many encoders carry or lack; nothing here reads it
_BUFFERS = ("position_ids", "inv_freq")  # that older versions of the library saved
_ADAPTER = "adapter_config.json"
_LARGE = 100_000_000  # parameters that take a second or more to draw


def from_pretrained(auto: Any, folder: str, new: Sequence[str] = (), role: str = "parent", **how: Any) -> Any:
    """Return a model of an Auto class, or of a class of the library, in fp32, every tensor of which lies in the folder, and which has a place for each.

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
    _plain(folder, role)
    try:
        _enough(auto, folder, role)
        model, told = auto.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **how
        )
    except (RuntimeError, ImportError, SafetensorError) as error:  # of sizes that differ it says no more than that they do
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
    _finite(model, folder, role)
    _tied(model, folder, role)
    return model


def configuration(folder: str, role: str = "parent") -> Any:
    """Return the configuration of a folder or hub id, by which its class is chosen; UserError where only code of its own could load it."""
    from transformers import AutoConfig

    _plain(folder, role)
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _plain(folder: str, role: str) -> None:
    """Raise UserError where a configuration says that weights are quantised, or that only code of the model's own can load them."""
    from transformers import CONFIG_MAPPING

    path = Path(folder) / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):  # which the library will say
        return
    if not isinstance(settings, dict):
        return
    if settings.get("auto_map") and settings.get("model_type") not in CONFIG_MAPPING:
        raise UserError(
            f"--{role} {folder}: config.json wants Python code of the model's own to run (auto_map), which is never done; take a "
            "model of a type that transformers has"
        )
    if how := settings.get("quantization_config"):
        method = how.get("quant_method", "") if isinstance(how, dict) else ""
        raise UserError(
            f"--{role} {folder}: config.json says that its weights are quantised ({method or 'quantization_config'}), and rounded weights "
            "are not trained here; take the model as it was before that"
        )


def stored(folder: Path) -> int:
    """Return how many numbers the safetensors of a model folder hold, of which only the headers are read."""
    found = 0
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found += sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):  # which loading it will say
            return 0
    return found


def _enough(auto: Any, folder: str, role: str) -> None:
    """Raise UserError where the weights are a small part of a large model: all the rest would be drawn at random before that is told.

    A config.json that lost its sizes means the library's defaults, billions of parameters.
    """
    import torch
    from transformers import AutoConfig

    held = stored(Path(folder))
    if not held or auto.__name__ == "AutoModel":
        return
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        drawn = auto.from_config(config, trust_remote_code=False) if hasattr(auto, "from_config") else auto(config)
        asked = drawn.num_parameters()
    if asked > _LARGE and held < asked / 2:
        raise UserError(
            f"--{role} {folder}: config.json asks for {asked:,} parameters, and the weights hold {held:,}; they don't belong together"
        )


def _finite(model: Any, folder: str, role: str) -> None:
    """Raise UserError for tensors that hold infinities, or what is no number."""
    broken = [name for name, one in model.named_parameters() if not bool(one.isfinite().all())]
    if broken:
        raise UserError(
            f"--{role} {folder}: {_named(broken)} hold numbers that are not finite (NaN or infinity); the weights are wrecked: take "
            "an earlier checkpoint, or make them again"
        )


def _tied(model: Any, folder: str, role: str) -> None:
    """Raise UserError where the weights hold another head than the embeddings to which the configuration ties it.

    The library then unties them with no more than a line in its log.
    """
    import torch

    if not getattr(model.config, "tie_word_embeddings", False):
        return
    head = getattr(model.get_output_embeddings(), "weight", None)
    begin = getattr(model.get_input_embeddings(), "weight", None) if head is not None else None
    if head is None or begin is None or head is begin or head.shape != begin.shape or torch.equal(head, begin):
        return
    raise UserError(
        f"--{role} {folder}: config.json ties the head to the embeddings (tie_word_embeddings), but the weights hold another head; "
        "one of them is of another model: set tie_word_embeddings to false if the head is meant, or take its tensor away"
    )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _part_of(name: str, modules: Sequence[str]) -> bool:
    return any(part in modules for part in name.split("."))


def _has_place(model: Any, name: str) -> bool:
    """Say whether a tensor belongs to the model's body, or to a module that the model has; else it is of a head of another task."""
    if _part_of(name, _POOLER) or name.rpartition(".")[2] in _BUFFERS:
        return False
    name = name.removeprefix(f"{model.base_model_prefix}.") if model.base_model is model else name  # a bare body has no prefix
    known = {child for child, _ in model.named_children()}
    body = {model.base_model_prefix} & known or known
    first, owner = name.partition(".")[0], name.rpartition(".")[0]
    return first in body or (bool(owner) and any(module == owner for module, _ in model.named_modules()))


def _sizes(folder: str, error: Exception) -> str:
    """Return in words why tensors did not fit."""
    said = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in said or "size mismatch" in said:
        return "tensors of its weights have other sizes than config.json says; they don't belong together"
    return f"can't be loaded ({said[:200]})"

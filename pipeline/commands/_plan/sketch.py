"""A node whose parent can't be loaded here: planned from the parent's configuration, on a model without weights.

The step is a plain one on rows of `max_length`: what it reads and learns from is the stage's to say, so operations and memory
are those of full rows, and at most these.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.chain.profile import Node
from pipeline.chain.stage import PARENT
from pipeline.data import recipe as recipes
from pipeline.models.families import family_of

_WEIGHTS = ("*.safetensors", "*.bin")
_FEW = 2, 3  # rows of the two steps that are followed


def parameters(folder: Path) -> int:
    """Return how many parameters the model of a folder's configuration has."""
    return int(_empty(folder)[0].num_parameters())


def too_large(folder: Path, room: int) -> bool:
    """Say whether a model folder has no weights, or more than can be loaded here in fp32."""
    if not (folder / "config.json").is_file():
        return False
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        return True
    stored = sum(path.stat().st_size for path in folder.glob(_WEIGHTS[0]))
    return stored > room / 2 and 4 * parameters(folder) > room  # of bf16, twice what is stored


def answer(node: Node, folder: Path, here: bool) -> dict[str, Any]:
    """Return what a trainer would have answered. `here`: this machine computes in fp32, others in bf16."""
    import torch

    from pipeline.training import frozen, room
    from pipeline.training.footprint import extrapolated, of_configuration

    options, arguments = node.stage.split(node.settings)
    config, auto = _empty(folder)[1:]
    length = int(arguments.get("max_length") or getattr(options, "max_length", 0) or min(1024, _positions(config)))

    def prepare(model: Any) -> Any:
        adapter = options.adapter(model) if hasattr(options, "adapter") else None
        if arguments.get("gradient_checkpointing"):
            model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        if adapter is not None:
            from peft import get_peft_model

            model = get_peft_model(model, adapter, autocast_adapter_dtype=False)
        return model

    dtype = torch.float32 if here else torch.bfloat16
    batch, parts = (int(arguments.get(key, default)) for key, default in (("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1)))  # fmt: skip
    sides = 2 if node.stage.reads == "preference" else 1  # of a row, each read beside the other
    model, few = of_configuration(config, auto, length, _FEW[0], prepare, dtype)
    _, more = of_configuration(config, auto, length, _FEW[1], prepare, dtype)
    steps = _steps(node, options, arguments, batch * parts)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    whole = sum(one.numel() for one in model.parameters())
    roundable = frozen.numbers(model)
    weights = 4 * whole + (0 if here else 2 * trained - 2 * roundable)  # autocast keeps a copy in bf16 of what is trained
    gradients, state = 4 * trained, room.needed(model, str(arguments.get("optim", "adamw_torch_fused")))

    def held(rows: int) -> tuple[int, int]:
        step = extrapolated(few, more, (sides * rows - _FEW[0]) / (_FEW[1] - _FEW[0]))
        return max(step.peak - step.kept, 0), step.logits

    activations, logits = held(batch)
    every = sides * batch * parts * steps / _FEW[0]
    smaller = {str(batch >> at): weights + gradients + state + held(batch >> at)[0] for at in range(1, batch.bit_length())}
    return {
        "trained": trained, "frozen": whole - trained, "steps": steps, "tokens": sides * batch * parts * steps * length, "batch": batch,
        "accumulation": parts, "flops": {"linear": few.linear * every, "attention": few.attention * every},
        "memory": {
            "weights": weights, "gradients": gradients, "optimizer": state, "activations": activations - min(logits, activations),
            "logits": min(logits, activations), "others": 0,
        },
        "held": weights + gradients + state + activations, "smaller": smaller, "sketched": True, "roundable": roundable, "weight": 4 if here else 2,
    }  # fmt: skip


def _empty(folder: Path) -> tuple[Any, Any, Any]:
    """Return the model of a configuration on the meta device, its configuration, and the class that builds it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    masked = family_of((config.architectures or [""])[0]) == "masked"
    auto: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=False), config, auto


def _positions(config: Any) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1024)


def _steps(node: Node, options: Any, arguments: dict[str, Any], rows_of_a_step: int) -> int:
    """Return the steps of the run, of rows that are counted and not encoded."""
    if (most := int(arguments.get("max_steps", -1))) > 0:
        return most
    rows = recipes.load(options.recipe).rows(node.stage.reads, "train", int(arguments.get("seed", 42)))
    return math.ceil(math.ceil(len(rows.kept) / rows_of_a_step) * float(arguments.get("num_train_epochs", 3)))


def parent_of(node: Node, place: Any) -> Path | None:
    """Return the folder of a node's parent that is no node of the profile; None where there is none."""
    name = node.parents.get(PARENT, "")
    return Path(name) if name and place(name) is None and Path(name).is_dir() else None

"""Whether each node of a profile can fit into memory at all, told before the first one trains.

Only what is certain counts: weights in fp32, and where every parameter is trained a gradient of each and what the optimizer keeps
of it. Activations come on top, and `make plan` estimates them. So whatever is refused here could not have run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.chain import profile
from pipeline.chain.stage import PARENT
from pipeline.models.loading import stored
from pipeline.system import process
from pipeline.system.optimizers import least_state

_WEIGHT, _QUANTISED = 4.0, 0.5  # bytes of one


def parameters(whole: profile.Profile, node: profile.Node) -> int:
    """Return how many parameters a node's model has at least; 0 where that is not known."""
    try:
        options = node.stage.split(node.settings)[0]
    except TypeError:
        return 0
    if PARENT not in node.parents:
        return node.stage.parameters(options)
    before = node.parents[PARENT]
    return parameters(whole, whole.nodes[before]) if before in whole.nodes else stored(Path(before))


def fault(node: profile.Node, count: int, options: Any, arguments: Mapping[str, Any], room: int) -> str:
    """Return why a node of so many parameters can't fit, with the smallest change that would; "" where it may.

    `room`: bytes that may be filled.
    """
    if not count or process.count() > 1 or arguments.get("fsdp") or arguments.get("deepspeed"):
        return ""  # what one process holds is the launcher's to say
    method = getattr(options, "method", "full")
    optimizer = str(arguments.get("optim", "adamw_torch_fused"))
    full, four = method == "full" and node.stage.library_of(node.settings) is not None, getattr(options, "load_in_4bit", False)
    weights = count * (_QUANTISED if four else _WEIGHT)
    trained = count * _WEIGHT if full else 0.0
    kept = count * least_state(optimizer) if full else 0.0
    if weights + trained + kept <= room:
        return ""
    parts = [f"{count:,} parameters need {_size(weights)}"]
    parts += [f"gradients {_size(trained)} and what {optimizer} keeps {_size(kept)}"] if full else []
    return f"{node.file}: {_size(room)} of memory can be filled, but {', '.join(parts)}: {_remedy(count, options, full, bool(kept), room)}"


def _remedy(count: int, options: Any, full: bool, keeps: bool, room: int) -> str:
    weights = count * _WEIGHT
    if keeps and 2 * weights <= room:
        return "optim: adafactor keeps nearly nothing and would fit; `make plan` shows what else would"
    if full and hasattr(options, "method") and weights <= room:
        return "method: lora trains a small share of the parameters; `make plan` shows what that takes"
    if hasattr(options, "load_in_4bit") and count * _QUANTISED <= room and not getattr(options, "load_in_4bit", False):
        lora = "method: lora and " if full else ""
        return f"{lora}load_in_4bit: true holds them in {_size(count * _QUANTISED)}; `make plan` shows what that takes"
    return "take a smaller model or a larger machine; `make plan ON=h100` shows what it takes there"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"

"""Frozen weights in fewer bits while an adapter trains beside them; the adapter is merged into the weights as they were.

In 4 bits (QLoRA, Dettmers et al. 2023, by bitsandbytes) the parent is opened so, and opened again in fp32 when the adapter is
merged. In bf16 it is the layers that autocast would round in every product anyway, so that nothing else is computed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.models import vision_language
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import torch

    from pipeline.chain.run import Run

_LIBRARY = "bitsandbytes"
_BLOCK = 64  # weights that share a scale
FOUR_BITS = 0.5 + 4 / _BLOCK  # bytes of a weight, with its share of the scale


def four_bits(run: Run) -> dict[str, Any]:
    """Return how the library is to open a parent in 4 bits, by its own BitsAndBytesConfig; nothing where that is not wanted.

    Raises UserError where bitsandbytes is missing, or where neither an NVIDIA device nor a CPU would compute.
    """
    options = run.options
    if not getattr(options, "load_in_4bit", False):
        return {}
    if importlib.util.find_spec(_LIBRARY) is None:
        raise UserError(
            f"load_in_4bit: true: needs the package {_LIBRARY}, which is not installed; `pip install {_LIBRARY}`, or leave it "
            "out: method: lora alone holds the frozen weights in bf16 on a GPU"
        )
    if options.method != "lora":
        raise UserError(f"load_in_4bit: true: method {options.method} trains weights that would be rounded; set method: lora")
    if options.init == "random":
        raise UserError("load_in_4bit: true: there is no parent's weight to round with init: random; leave one of them out")
    import torch
    from accelerate import PartialState
    from transformers import BitsAndBytesConfig

    device = PartialState(cpu=not torch.cuda.is_available() or bool(run.arguments.get("use_cpu"))).device
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"load_in_4bit: true: {_LIBRARY} does not compute on {device.type}; leave it out, or set use_cpu: true")
    computes = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=options.bnb_4bit_quant_type, bnb_4bit_compute_dtype=computes,
        bnb_4bit_use_double_quant=options.bnb_4bit_use_double_quant,
    )  # fmt: skip
    return {"quantization_config": how, "device_map": {"": device}}


def settle(model: Any) -> None:
    """Let 4-bit layers compute in the precision that was chosen, and keep the format in which they can be trained on.

    bitsandbytes would take that of the first input, which is fp32 here, and on some CPUs pack the weights of a model that is
    only asked into a format that no gradient passes through. UserError where a CPU would read the weights wrongly.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "compute_type_is_set")}
    odd = [name for name, layer in layers.items() if layer.weight.device.type == "cpu" and layer.in_features % _BLOCK]
    if odd:
        raise UserError(
            f"load_in_4bit: true: {odd[0]} is {layers[odd[0]].in_features} wide; on a CPU {_LIBRARY} reads 4-bit weights rightly "
            f"only where that is a multiple of {_BLOCK}; leave it out"
        )
    for layer in layers.values():
        layer.compute_type_is_set, layer.support_avx512bf16_for_cpu = True, False


def in_four_bits(model: Any) -> bool:
    """Say whether a model, or the one below an adapter, was opened in 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def masters(model: Any) -> None:
    """Train an adapter in fp32 beside 4-bit weights: trl makes it bf16, in which steps below 1/256 of a weight are lost."""
    import torch

    for one in model.parameters():
        if one.requires_grad and one.dtype != torch.float32:
            one.data = one.data.float()


def can_be_halved(model: Any) -> bool:
    """Say whether a model is one below an adapter whose checkpoints hold the adapter alone, and which reads no weight itself."""
    if not hasattr(model, "peft_config") or in_four_bits(model):
        return False
    return not any(getattr(one, "use_dora", False) for one in model.peft_config.values())


def halve(model: Any) -> Mapping[str, torch.Tensor]:
    """Hold the frozen layers in bf16 that autocast rounds to bf16 in every product; return the others' copies, on the host.

    Embeddings, norms and a head stay in fp32: what flows between the layers is not rounded. Result: name → fp32 weights.
    """
    import torch

    kept = {}
    for name, layer in _layers(model):
        if layer.weight.dtype != torch.float32:
            continue
        kept[name] = layer.weight.detach().to("cpu", copy=True)
        layer.weight.data = layer.weight.data.to(torch.bfloat16)
    return kept


def restore(model: Any, kept: Mapping[str, torch.Tensor]) -> None:
    """Give the layers that were halved their own weights back."""
    layers = dict(model.named_modules())
    for name, weights in kept.items():
        layers[name].weight.data = weights.to(layers[name].weight.device)


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the frozen linear layers, but for heads, which may share their weights and are read apart by trl."""
    import torch

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = causal.get_output_embeddings()
    spared = {id(one) for one in ([] if head is None else head.parameters())}
    for name, module in model.named_modules():
        if type(module) is not torch.nn.Linear or id(module.weight) in spared:
            continue
        if not module.weight.requires_grad:
            yield name, module


def numbers(model: Any) -> int:
    """Return how many numbers lie in the layers that can be held in 4 bits, in which no model that sees is opened."""
    if not hasattr(model, "peft_config") or vision_language.reads_images(model):
        return 0
    return sum(layer.weight.numel() for _, layer in _layers(model))


def on_the_parent(adapted: Any, base: Any) -> Any:
    """Return the trained adapter on another copy of its base, such as one that is not rounded. Raises RuntimeError of what is lost."""
    import torch
    from peft import get_peft_model

    whole = get_peft_model(base, adapted.peft_config["default"])
    trained = {name: one for name, one in adapted.named_parameters() if one.requires_grad}
    with torch.no_grad():
        for name, place in whole.named_parameters():
            if name in trained:
                place.copy_(trained.pop(name))
    if trained:
        raise RuntimeError(f"the parent has no place for what was trained: {', '.join(list(trained)[:3])}")
    return whole

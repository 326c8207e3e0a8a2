"""Whether packed documents stay apart under each attention kernel that the machine has, in the precision that it trains in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.system import hardware
from tests.prove_gpu import Row

_KERNELS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "kernels-community/flash-attn2")
_SHOWN = 110  # characters of a library's refusal


def rows(place: Path, small: bool) -> Iterator[Row]:
    """Yield for each kernel the influence of one document on another, and the time of a step beside that of sdpa."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from pipeline.training.attention import influence

    wide, length = (64, 128) if small else (1024, 4096)
    config = LlamaConfig(
        hidden_size=wide, num_hidden_layers=2, num_attention_heads=wide // 64, intermediate_size=2 * wide, vocab_size=1000,
        max_position_embeddings=length,
    )  # fmt: skip
    seconds: dict[str, float] = {}
    for kernel in _KERNELS:
        if small and kernel == "flex_attention":
            yield Row(f"packed documents apart, {kernel}", "not tried on a CPU, where it compiles for minutes")
            continue
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(hardware.device())
        try:
            model.set_attn_implementation(kernel)
            with torch.autocast(hardware.device(), torch.bfloat16, enabled=bool(hardware.placement()["bf16"])):
                found = influence(model, 1 if "flash" in kernel else 2)
                seconds[kernel] = _step(model, length)
        except Exception as error:  # whatever a kernel or its library raises where it can't run
            yield Row(f"packed documents apart, {kernel}", f"not here: {' '.join(str(error).split())[:_SHOWN]}")
            continue
        speed = f"; {seconds['sdpa'] / seconds[kernel]:.2f} times as fast as sdpa" if "sdpa" in seconds else ""
        yield Row(f"packed documents apart, {kernel}", f"influence {found:.1e}{speed}", "0", found == 0)


def _step(model: Any, length: int) -> float:
    """Return the seconds of a step on a packed row, the best of three."""
    import torch

    ids = torch.arange(length, device=model.device)[None] % 1000
    positions = torch.arange(length, device=model.device)[None] % (length // 8)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss.backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best

"""Pretraining of profile tiny beside a bare loop on the same batches, and its share of the machine's matrix-product peak."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.system import hardware
from tests.prove_gpu import Row


def peak(size: int) -> float:
    """Return the floating point operations a second of a product of square matrices, in the precision that is trained in."""
    import torch

    device = hardware.device()
    kind = torch.bfloat16 if hardware.placement()["bf16"] else torch.float32
    one, other = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def rows(place: Path, small: bool) -> Iterator[Row]:
    """Yield the peak, and tokens a second, ratio and utilisation of the two sides."""
    from pipeline.training import flops
    from tests.throughput import Material, compared, ours_and_a_bare_loop, ratio

    highest = peak(1024 if small else 8192)
    yield Row("matrix-product peak", f"{highest / 1e12:.3g} TFLOP/s")
    (place / "material").mkdir()
    steps, warm, pairs = (6, 2, 1) if small else (100, 10, 2)
    material = Material(place / "material", steps)
    sums = compared(ours_and_a_bare_loop(material), slice(warm, steps), pairs)
    batch = material.collate(
        [{key: value for key, value in material.rows[at].items() if key != "row"} for at in range(material.size)]
    )
    operations = flops.of_a_batch(material.objective, material.model(), [batch])
    seconds = [sum(column) / (pairs * (steps - warm)) for column in zip(*sums, strict=True)]
    for name, each in zip(("ours", "bare loop"), seconds, strict=True):
        rate, share = batch["input_ids"].numel() / each, operations / each / highest
        yield Row(f"tiny's pretraining, {name}", f"{rate:,.0f} tokens/s, utilisation {share:.1%}")
    found = 1 / ratio(sums)
    yield Row(
        "tiny's pretraining, speed over the bare loop's", f"{found:.3f}", "at least 0.95", None if small else found >= 0.95
    )

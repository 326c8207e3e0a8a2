"""What the machine decides: device, precision, and what a run took from it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.system import cores

CORE_WATTS, ACCELERATOR_WATTS = 10, 400  # what an estimate of energy assumes of one core, of one accelerator


def watts(recorded: Mapping[str, Any]) -> float:
    """Return the power that a stage's recorded hardware is assumed to take; nobody measured it."""
    return float(CORE_WATTS * recorded["cores"] + ACCELERATOR_WATTS * len(recorded["accelerators"]))


def watts_of_one() -> int:
    """Return the power that a process here is assumed to take: of one accelerator, or of the cores where there is none."""
    return CORE_WATTS * cores.count() if device() == "cpu" else ACCELERATOR_WATTS


def placement() -> dict[str, Any]:
    """Return device and precision as keys of TrainingArguments, decided from the hardware.

    bf16 only where an accelerator computes in it: on most CPUs it is many times slower than fp32,
    and trl's classes would switch it on by themselves.
    """
    import torch

    if torch.cuda.is_available():
        return {"bf16": torch.cuda.is_bf16_supported()}
    if torch.backends.mps.is_available():
        return {"bf16": False, "dataloader_pin_memory": False}
    return {"bf16": False, "use_cpu": True, "dataloader_pin_memory": False}


def device() -> str:
    """Return where a finished model is asked: cuda, mps or cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def peak_memory() -> int:
    """Return the largest memory that the process held: of the accelerator where there is one, else of the host; bytes."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def room() -> int:
    """Return the bytes of memory that a process can still fill: of the accelerator where there is one, else of the host.

    On the host that is what the system calls available, with free swap, but no more than the process's control group is left.
    """
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return host_room()


def host_room() -> int:
    """Return the bytes of the host's memory that a process can still fill; no accelerator is asked."""
    import psutil

    free = int(psutil.virtual_memory().available + psutil.swap_memory().free)
    return min([free, *_limits()])


class DevicePeak:
    """The most that this process held of its accelerator, what the allocator keeps included, since it was asked to forget it."""

    @property
    def most(self) -> int:
        """Bytes."""
        import torch

        return int(torch.cuda.max_memory_reserved())

    def forget(self) -> None:
        """Give back what was freed, and begin anew."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _limits() -> Iterator[int]:
    """Yield what the process's control groups leave, of version 2."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines()).get("file", "0")
    except (OSError, ValueError):
        return
    if limit != "max":
        yield int(limit) - int(used) + int(cached)

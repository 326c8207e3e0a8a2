"""What optimizers keep of each parameter that they move, by their names; Muon, which is ours, among them."""

from __future__ import annotations

MUON = "muon"  # of matrices within layers; every other parameter moves as by BESIDE_MUON
BESIDE_MUON = "adamw_torch"


def least_state(optimizer: str) -> int:
    """Return the bytes that an optimizer keeps at least for each parameter: 0 for one that keeps little or is not known."""
    name = optimizer.lower()
    if name == MUON:
        return 4  # a momentum; AdamW keeps two numbers
    if "adam" not in name or any(kind in name for kind in ("4bit", "paged", "galore", "apollo")):  # of low rank, the last two
        return 0
    return 2 if "8bit" in name or "fp8" in name else 8


def most_state(optimizer: str) -> int:
    """Return the bytes that an optimizer keeps at most for each parameter: of Muon it is what AdamW keeps of the others."""
    name = optimizer.lower()
    return 8 if "adam" in name or name == MUON else 4

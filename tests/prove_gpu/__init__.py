"""What only a machine with an accelerator can prove, in ten minutes and one table: `make prove-gpu`.

Without CUDA the same parts run on the CPU with small sizes, so that the script is known to work; its table then says so and
proves nothing about an accelerator. Each part is a module with `rows(place, small)`, run in a process of its own.
"""

from __future__ import annotations

import dataclasses

PARTS = ("chains", "large", "speed", "isolation", "kills")


@dataclasses.dataclass
class Row:
    """A line of the table: what was found, what is wanted, and whether it holds; None where nothing is promised of it."""

    what: str
    found: str
    wanted: str = ""
    holds: bool | None = None

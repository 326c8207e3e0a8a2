"""The machines that a plan is made for: this one, or so many of a known device."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from pipeline.commands._forked import answered
from pipeline.system import hardware
from pipeline.system.config import read_yaml
from pipeline.system.errors import UserError
from pipeline.system.words import meant

_FILE = Path(__file__).with_name("devices.yaml")
UTILISATION = 0.40  # share of a device's peak that a well-made run reaches, where nobody measured it: 38 to 43% for Llama 3


@dataclasses.dataclass(frozen=True)
class Machine:
    """So many devices of a kind."""

    name: str
    count: int
    memory: float  # bytes of one device that may be filled
    watts: float | None  # of one; None where no source was found
    bf16: float = 0.0  # operations a second of one at its peak; 0 of this machine, which is measured
    price: float | None = None  # dollars an hour of one
    here: bool = False

    def seconds(self, operations: float, utilisation: float) -> float:
        """Return how long so many operations take."""
        return operations / (self.bf16 * self.count * utilisation)


def known() -> dict[str, dict[str, Any]]:
    """Return the table of devices."""
    found: dict[str, dict[str, Any]] = read_yaml(_FILE.read_text(encoding="utf-8"))
    return found


def chosen(name: str) -> Machine:
    """Return the machine of a name such as h100x8; this one where it is empty. UserError with the nearest names."""
    if not name:
        return this()
    table = known()
    match = re.fullmatch(r"(.+?)(?:x(\d+))?", name.lower())
    device = match[1] if match else name
    if device not in table:
        remedy = meant(device, table, f"known are {', '.join(table)}.", most=3, cutoff=0.4)
        raise UserError(
            f"ON={name}: no such device; {remedy} A count may follow, as in ON=h100x8; {_FILE.name} holds the table"
        )
    count = int(match[2] or 1) if match else 1
    if not count:
        raise UserError(f"ON={name}: no device at all; give a count from 1, as in ON={device}x8")
    row = table[device]
    return Machine(f"{device} x {count}", count, float(row["memory"]), row.get("watts"), float(row["bf16"]), row.get("price"))


def this() -> Machine:
    """Return the machine that we are on: its memory that is free now, of one accelerator where there is any."""
    room, watts = answered(lambda: (hardware.room(), hardware.watts_of_one()))
    return Machine("this machine", 1, room, watts, here=True)

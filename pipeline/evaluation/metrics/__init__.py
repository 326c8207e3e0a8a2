"""The registry of what is measured: a metric says what it means, in which unit, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "nats", "bits", "ratio", "score"]
Direction = Literal["more", "less", ""]  # which way is better; "" where neither is


@dataclass(frozen=True)
class Metric:
    """What a figure means, declared once beside the code that measures it; tables, report and card read it here."""

    name: str
    meaning: str  # one sentence for a reader who doesn't know the method
    unit: Unit
    better: Direction

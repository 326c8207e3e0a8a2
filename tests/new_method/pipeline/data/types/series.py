"""Series of numbers at equal distances: {"values": [float, …]}."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.types import DatasetType, Format, Malformed, Row

_WIDE, _HIGH = 240, 60  # of a drawing


def _converted(row: Mapping[str, Any]) -> Row:
    values = row["values"]
    if not isinstance(values, list) or not all(isinstance(value, (int, float)) for value in values):
        raise Malformed(f"values is {type(values).__name__}, not a list of numbers")
    return {"values": [float(value) for value in values]}


class Series(DatasetType):
    """One series a row."""

    columns = "`values`: numbers that were measured at equal distances"
    items = "series"
    formats = (Format("values", frozenset({"values"}), _converted),)

    def fault(self, row: Row) -> str | None:
        """Return that a series is empty, or holds what is no finite number."""
        if not row["values"]:
            return "empty series"
        return None if all(map(math.isfinite, row["values"])) else "series with a number that is not finite"

    def thumbnails(self, row: Row) -> list[str]:
        """Return the series as a line."""
        return [self.drawn(row["values"])]

    def drawn(self, values: Sequence[float], known: int = 0) -> str:
        """Return a series as a line, a data URL; dashed from its number `known` on."""
        low, high = min(values), max(values)
        across, up = _WIDE / max(1, len(values) - 1), (_HIGH - 4) / ((high - low) or 1.0)
        points = [f"{at * across:.1f},{_HIGH - 2 - (value - low) * up:.1f}" for at, value in enumerate(values)]
        line = '<polyline fill="none" stroke="#0b56a4" stroke-width="2" {}points="{}"/>'
        parts = [("", points[: known + 1]), ('stroke-dasharray="4 4" ', points[known:])] if known else [("", points)]
        lines = "".join(line.format(how, " ".join(some)) for how, some in parts)
        image = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDE}" height="{_HIGH}">{lines}</svg>'
        return f"data:image/svg+xml;base64,{base64.b64encode(image.encode()).decode('ascii')}"


TYPE = Series()

"""The loss curve as a picture beside a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import charts, templates


def draw(log: Sequence[Mapping[str, Any]], title: str, lines: Mapping[str, float]) -> str:
    """Return an SVG of training loss against tokens; `lines` are named heights to compare with, such as a floor."""
    points = [(int(entry["tokens"]), float(entry["loss"])) for entry in log]
    chart = charts.loss(title, "", {title: points}, lines)
    return str(templates.environment().get_template("loss.svg.jinja").render(chart=chart))

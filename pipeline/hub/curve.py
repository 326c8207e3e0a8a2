"""The loss curve as a picture: a small SVG, so that no drawing library is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 280, 56, 28, 28, 40
_TICKS = 4


def draw(log: Sequence[Mapping[str, Any]], title: str, lines: Mapping[str, float]) -> str:
    """Return an SVG of training loss against tokens; `lines` are named heights to compare with, such as a floor."""
    points = [(float(entry["tokens"]), float(entry["loss"])) for entry in log]
    high = max([loss for _, loss in points] + list(lines.values()))
    last = max(tokens for tokens, _ in points) or 1.0

    def place(tokens: float, loss: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * tokens / last
        return round(across, 1), round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * loss / (high or 1.0), 1)

    right = _WIDTH - _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-family="sans-serif" font-size="11">',
        f"<title>{title}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" font-size="13" fill="#222">{title}</text>',
    ]
    for tick in range(_TICKS + 1):
        y = place(0, high * tick / _TICKS)[1]
        x = place(last * tick / _TICKS, 0)[0]
        parts.append(f'<path d="M{_LEFT} {y}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end" fill="#555">{high * tick / _TICKS:.2f}</text>')
        parts.append(f'<text x="{x}" y="{_HEIGHT - 22}" text-anchor="middle" fill="#555">{_short(last * tick / _TICKS)}</text>')
    parts.append(f'<text x="{(_LEFT + right) // 2}" y="{_HEIGHT - 6}" text-anchor="middle" fill="#555">tokens</text>')
    for name, line in lines.items():
        y = place(0, line)[1]
        parts.append(f'<path d="M{_LEFT} {y}H{right}" stroke="#b35900" stroke-dasharray="5 4"/>')
        parts.append(f'<text x="{right}" y="{y - 4}" text-anchor="end" fill="#b35900">{name} {line:.3f}</text>')
    path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
    parts.append(f'<polyline points="{path}" fill="none" stroke="#1f5fa8" stroke-width="1.6" stroke-linejoin="round"/>')
    return "\n".join([*parts, "</svg>", ""])


def _short(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"

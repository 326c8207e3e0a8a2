"""Geometry of the page's pictures: what the template draws, in the units of a picture 360 wide, the width of a phone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM = 44, WIDTH - 12, 28, 214  # the frame of a chart
_POINTS = 240  # of a curve; more can't be told apart at this width
_SETTLED = 0.1  # of the tokens: what a loss falls through before would press all that follows together
_CURVES, _LINES = (0, 1, 5, 6), (2, 3, 4)  # strokes of curves and of straight lines


@dataclass(frozen=True)
class Mark:
    """A number at its place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A line through a chart, or a straight one across it."""

    name: str
    path: str  # empty where it lies outside of the frame
    kind: int  # its stroke


@dataclass(frozen=True)
class Chart:
    """Curves in a frame: loss against tokens, or rewards against KL."""

    name: str
    text: str  # what it shows, for those who don't see it
    curves: Sequence[Curve]
    across: Sequence[Mark]
    up: Sequence[Mark]
    labels: tuple[str, str]  # of the axes: across, up
    height: int

    @property
    def frame(self) -> tuple[int, int, int, int]:
        """Left, right, top and bottom of where the curves lie."""
        return LEFT, RIGHT, TOP, BOTTOM


@dataclass(frozen=True)
class Interval:
    """One figure of one model with its interval."""

    name: str
    y: float
    at: float
    low: float
    wide: float
    text: str


@dataclass(frozen=True)
class Forest:
    """One metric of all models of a node's evaluation."""

    title: str
    text: str
    intervals: Sequence[Interval]
    across: Sequence[Mark]
    height: int


def brief(value: float) -> str:
    """Return a number as an axis shows it: 1.5M, 200k, 0.25."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Return round numbers from `low` to `high`, about as many as wanted."""
    span = (high - low) or 1.0
    size: float = 10 ** math.floor(math.log10(span / wanted))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= wanted)
    return [round(number * step, 12) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def loss(name: str, text: str, curves: Mapping[str, Sequence[tuple[int, float]]], lines: Mapping[str, float]) -> Chart:
    """Return a chart of training losses (tokens, nats) with straight lines to hold them against.

    The frame holds what a loss is after its first fall, so that a floor can be told from a model that comes near it.
    """
    settled = [value for points in curves.values() for value in _settled(points)]
    below = [line for line in lines.values() if line <= max(settled, default=0.0)]
    return _drawn(name, text, curves, lines, _bounds(settled + below), ("tokens", "training loss"))


def rewards(name: str, text: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    """Return a chart of rewards against KL (nats an answer), each from the least to the most that it was."""
    scaled, named = {}, [(reward, points, [value for _, value in points]) for reward, points in curves.items()]
    for reward, points, values in named:
        low, high = min(values), max(values)
        scaled[f"{reward}: {low:.3g} to {high:.3g}"] = [(kl, (value - low) / ((high - low) or 1.0)) for kl, value in points]
    return _drawn(name, text, scaled, {}, (0.0, 1.04), ("KL to the parent, nats an answer", "reward, 0 the least, 1 the most"))


def selective(name: str, text: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    """Return a chart of shares refused of what can't be known against shares lost of what is, both in per cent.

    It is the curve of risk against coverage (El-Yaniv and Wiener 2010), for two sorts of questions.
    """
    return _drawn(name, text, curves, {}, (0.0, 104.0), ("right answers lost, %", "refused, %"))


def _drawn(
    name: str, text: str, curves: Mapping[str, Sequence[tuple[float, float]]], lines: Mapping[str, float],
    bounds: tuple[float, float], labels: tuple[str, str],
) -> Chart:  # fmt: skip
    """Return curves and straight lines in the frame of a chart, from 0 to the most across."""
    most = max(at for points in curves.values() for at, _ in points)
    floor, ceiling = bounds

    def x(at: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * at / (most or 1), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - floor) / (ceiling - floor), 1)

    drawn = [
        Curve(curve, "M" + "L".join(f"{x(at)} {y(value)}" for at, value in _under(_thin(points), ceiling)), kind)
        for (curve, points), kind in zip(curves.items(), itertools.cycle(_CURVES if lines else (*_CURVES, *_LINES)))
    ]  # fmt: skip
    kinds = itertools.cycle(_LINES)  # a line that is not drawn has no stroke, so that no two that are share one
    drawn += [
        Curve(f"{line}: {value:.3f}", f"M{LEFT} {y(value)}H{RIGHT}", next(kinds))
        if value <= ceiling
        else Curve(f"{line}: {value:.3f}, above the frame", "", 0)
        for line, value in lines.items()
    ]
    return Chart(
        name, text, drawn, [Mark(x(tick), brief(tick)) for tick in ticks(0, most)],
        [Mark(y(tick), f"{tick:g}") for tick in ticks(floor, ceiling)], labels, BOTTOM + 54 + 20 * len(drawn),
    )  # fmt: skip


def _settled(points: Sequence[tuple[float, float]]) -> list[float]:
    """Return the values of a curve after its first part; all of them where few are left."""
    late = [value for at, value in points if at >= _SETTLED * points[-1][0]]
    return late if len(late) > 1 else [value for _, value in points]


def _under(points: Sequence[tuple[float, float]], ceiling: float) -> list[tuple[float, float]]:
    """Return a curve from where it first enters the frame; what leaves it later follows its edge."""
    first = next((number for number, (_, value) in enumerate(points) if value <= ceiling), 0)
    kept = [(at, min(value, ceiling)) for at, value in points[first:]]
    if first:
        (before, high), (at, low) = points[first - 1], points[first]
        kept.insert(0, (at - (at - before) * (ceiling - low) / (high - low), ceiling))
    return kept


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: from 0 where the values come near it, else from a little below them."""
    values = [value for value in values if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    span = max(high - low, 0.05 * high)  # noise shall not look like a cliff
    low = min(0.0, low) if low < high / 5 else high - 1.1 * span
    return low, high + 0.04 * ((high - low) or 1.0)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most so many points as can be told apart: means of neighbours."""
    finite = [point for point in points if math.isfinite(point[1])]
    size = max(1, math.ceil(len(finite) / _POINTS))
    groups = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(at for at, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups]


def forest(title: str, text: str, figures: Mapping[str, tuple[Mapping[str, float], str]], share: bool) -> Forest:
    """Return one metric of several models: a point and its interval each, on one axis; shares from 0 to 1."""
    left, right, row = 14, WIDTH - 24, 44
    low = min(0.0, *(figure["low"] for figure, _ in figures.values()))
    high = 1.0 if share else max(figure["high"] for figure, _ in figures.values()) * 1.05 or 1.0

    def x(value: float) -> float:
        return round(left + (right - left) * (value - low) / (high - low), 1)

    intervals = [
        Interval(
            name,
            number * row + 32,
            x(figure["value"]),
            x(figure["low"]) - 1.5,
            3 + round(x(figure["high"]) - x(figure["low"]), 1),
            said,
        )
        for number, (name, (figure, said)) in enumerate(figures.items())
    ]
    across = [Mark(x(tick), f"{100 * tick:.0f}%" if share else brief(tick)) for tick in ticks(low, high)]
    return Forest(title, text, intervals, across, len(intervals) * row + 34)


def described(points: Sequence[tuple[int, float]]) -> str:
    """Return in words how a loss went."""
    (_, start), (tokens, end) = points[0], points[-1]
    least: Any = min(value for _, value in points)
    return f"from {start:.3f} to {end:.3f} over {tokens:,} tokens, least {least:.3f}"

"""Measurements of one node in, its part of the evaluation out: figures with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.chain.stage import Against
from pipeline.evaluation.intervals import FEW
from pipeline.evaluation.metrics import Measurement, Metric
from pipeline.system.errors import UserError

_BASELINE = {"role": "baseline", "asked": ""}

Found = dict[str, dict[str, Measurement]]  # metric → label of a model → what was measured


def collected(measurements: Iterable[Measurement]) -> Found:
    """Return measurements by metric and model, in the order in which they came."""
    found: Found = {}
    for one in measurements:
        found.setdefault(one.metric, {})[one.model] = one
    return found


def block(
    node: str, models: Mapping[str, Mapping[str, str]], found: Found, metrics: Sequence[Metric],
    judged_by: Sequence[Against], resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """Return what was measured as a part of the summary: `models`, `metrics`, `figures`, `comparisons`, `primary`.

    `models` are the columns in their order, with the node's among them; a model that is not in it is a baseline.
    The metrics that the stage is judged by come first.
    """
    first = [against.metric for against in judged_by if against.metric in found]
    order = list(dict.fromkeys([*first, *found]))
    measured = dict.fromkeys(label for metric in order for label in found[metric])
    columns = {label: dict(models.get(label, _BASELINE)) for label in [*models, *measured] if label in measured}
    described: dict[str, Metric] = {}
    for metric in metrics:
        if described.setdefault(metric.name, metric) != metric:
            raise UserError(f"{node}: two evaluators measure {metric.name} and mean different things; rename one")
    figures = {
        name: {
            label: asdict(found[name][label].figure.estimate(groups=found[name][label].groups, resamples=resamples))
            for label in columns if label in found[name]
        }
        for name in order
    }  # fmt: skip
    comparisons = [
        _compared(found[name][node], found[name][label], described[name], columns[label]["role"], resamples)
        for name in order if node in found[name] for label in columns if label in found[name] and label != node
    ]  # fmt: skip
    return {
        "models": columns,
        "metrics": {name: {key: value for key, value in asdict(described[name]).items() if key != "name"} for name in order},
        "figures": figures, "comparisons": comparisons, "primary": primary(comparisons, judged_by),
    }  # fmt: skip


def _compared(mine: Measurement, theirs: Measurement, metric: Metric, role: str, resamples: int) -> dict[str, Any]:
    """Return the paired difference of the node to another model; `better` where its interval is clear of zero on the good side.

    Of fewer than `FEW` items nothing is called better.
    """
    try:
        found = mine.figure.estimate(theirs.figure, mine.groups, resamples)
    except ValueError as error:
        raise ValueError(f"{metric.name}: {mine.model} and {theirs.model}: {error}") from None
    clear = found.low > 0 if metric.better == "more" else found.high < 0 if metric.better == "less" else False
    return {"metric": metric.name, "against": theirs.model, "role": role, **asdict(found), "better": clear and found.n >= FEW}


def primary(comparisons: Sequence[Mapping[str, Any]], judged_by: Iterable[Against]) -> dict[str, Any] | None:
    """Return the comparison that a push goes by: the first that the stage is judged by and that was measured."""
    for metric, rival in judged_by:
        for one in comparisons:
            if one["metric"] == metric and rival in (one["role"], one["against"]):
                return dict(one)
    return None

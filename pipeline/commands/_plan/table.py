"""A plan on the terminal, in sentences and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline.commands._plan import Planned, cost, energy
from pipeline.commands._plan.devices import Machine

_PARTS = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimizer", "activations": "activations", "logits": "logits",
    "others": "reference, teacher or reward model",
}  # fmt: skip


def size(count: float) -> str:
    """Return bytes for people."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Return a time for people."""
    if math.isnan(seconds):
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} hours"


def lines(one: Planned, machine: Machine) -> Iterator[str]:
    """Yield what there is to say about a node."""
    if one.why:
        yield f"not planned: {one.why}"
        return
    found = one.found
    tokens = f" over {found['tokens']:,.0f} tokens" if "tokens" in found else ""
    yield f"trains {found['trained']:,} parameters, {found['frozen']:,} are frozen: {found['steps']:,} steps{tokens}"
    flops = found["flops"]
    yield f"operations: {sum(flops.values()):.2e}, of which attention is {flops['attention']:.2e}"
    parts = ", ".join(f"{name} {size(found['memory'][key])}" for key, name in _PARTS.items() if found["memory"][key] >= 1e4)
    yield f"tensors at the peak: {parts}"
    how = (
        "measured over the steps that were taken"
        if "measured" in found and machine.here
        else "tensors and what lies around them"
    )
    each = " on each device" if machine.count > 1 else ""
    yield f"peak memory: {size(one.peak)}{each} ({how}); disk: {size(one.disk)}"
    if machine.here and "measured" in found:
        measured = found["measured"]
        yield f"time: {duration(one.seconds)}, at {measured['seconds_a_step']:.3f} s a step, the mean of {measured['steps']} steps"
    else:
        yield f"time: {duration(one.seconds)}"
    if not one.fits:
        yield f"DOES NOT FIT: {size(one.room)} can be filled; tried in this order:"
        for change, peak in one.ways:
            yield f"  {change}: {size(peak)}, {'which fits' if peak <= one.room else 'too much'}"
        if not one.ways or one.ways[-1][1] > one.room:
            yield "  nothing that was tried makes it fit: take a smaller model, shorter rows, or a larger machine"


def whole(found: Sequence[Planned], machine: Machine, utilisation: float) -> Iterator[str]:
    """Yield the table of all nodes and what they take together."""
    looked = [one for one in found if not one.why]
    wide = max([len(one.name) for one in looked] or [4])
    yield f"{'node':<{wide}}  {'trained':>13}  {'steps':>9}  {'FLOPs':>8}  {'memory':>9}  {'disk':>9}  {'time':>11}"
    for one in looked:
        flops = sum(one.found["flops"].values())
        yield (
            f"{one.name:<{wide}}  {one.found['trained']:>13,}  {one.found['steps']:>9,}  {flops:>8.1e}  {size(one.peak):>9}  "
            f"{size(one.disk):>9}  {duration(one.seconds):>11}{'' if one.fits else '  DOES NOT FIT'}"
        )
    seconds = sum(one.seconds for one in looked)
    kwh, dollars = energy(machine, seconds), cost(machine, seconds)
    told = [f"{duration(seconds)} of training in all"]
    if kwh is not None:
        told.append(f"{kwh:.3g} kWh at {machine.watts:g} W{' a device' if machine.count > 1 else ''}, which is assumed")
    if dollars is not None:
        told.append(f"${dollars:,.2f}")
    if unplanned := [f"{one.name} ({one.kind})" for one in found if one.why]:
        yield f"not in these sums: {', '.join(unplanned)}"
    where = machine.name if machine.here else f"{machine.name}, at {utilisation:.0%} of their peak, which is assumed"
    yield f"on {where}: {', '.join(told)}"

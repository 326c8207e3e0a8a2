"""Train small sizes of a model, fit loss against parameters and tokens, and say which size is best for a budget of hours.

    python -m pipeline.commands.ladder --profile classics --runs runs --hours 0.15 [--node NODE] [--on h100x8] [--write yes]

The rungs are runs of the node's own stage under RUNS/PROFILE/ladder/NODE, on a share of the text (--share 0.2) at several token
counts (--counts 3), with --heads '[2, 3, 4]' or 20, 40 and 60% of the node's attention heads; finished ones are not trained
again. --prove yes trains a run of four times the largest rung's operations, too, and holds its loss against the law.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, profile
from pipeline.chain.profile import Node
from pipeline.commands._ladder import advice, law, rungs
from pipeline.commands._ladder.rungs import Measured, Rung, Text
from pipeline.commands._plan import devices, table
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"profile": "PROFILE", "runs": "RUNS", "node": "STAGE", "hours": "HOURS", "on": "ON"}
_FLAGS = ("profile", "runs", "node", "hours", "on", "utilisation", "heads", "share", "counts", "write", "prove")
_PROOF = 4  # times the operations of the largest rung


@dataclasses.dataclass(frozen=True)
class Options:
    """What was requested."""

    hours: float = 1.0
    heads: Sequence[int] | None = None
    share: float = 0.2  # of a pass over the text, which the longest rungs read
    counts: int = 3  # token counts of each size, each √2 less than the one before
    utilisation: float = devices.UTILISATION
    write: bool = False
    prove: bool = False


def requested(argv: Sequence[str]) -> tuple[Options, dict[str, Any]]:
    """Return options and the other flags of a command line; UserError with every fault."""
    flags, faults = config.only(_FLAGS, argv, switches=("write", "prove"))
    wanted = {
        "hours": ("a number of hours above 0", lambda x: _number(x) and x > 0),
        "share": ("a share of the text, above 0 and at most 1", lambda x: _number(x) and 0 < x <= 1),
        "utilisation": ("a share of the machine's peak, above 0 and at most 1", lambda x: _number(x) and 0 < x <= 1),
        "counts": (f"a whole number from {law.COUNTS}", lambda x: type(x) is int and x >= law.COUNTS),
        "heads": (
            f"at least {law.SIZES} different whole numbers of attention heads, as in '[2, 3, 4]'",
            lambda x: isinstance(x, list) and all(type(one) is int and one > 0 for one in x) and len(set(x)) >= law.SIZES,
        ),
    }  # fmt: skip
    for name, (what, right) in wanted.items():
        if name in flags and not right(flags[name]):
            faults.append(f"command line: --{name}: expected {what}, found {flags[name]!r}")
    if faults:
        raise UserError(*faults)
    names = {field.name for field in dataclasses.fields(Options)}
    given = {name: flags.pop(name) for name in list(flags) if name in names}
    return Options(**given), flags


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A node's ladder: its finished rungs, and the law that they tell."""

    node: Node
    folder: Path
    text: Text
    runs: Sequence[Measured]
    fit: law.Fit

    def sized(self) -> Iterator[tuple[rungs.Size, int]]:
        """Yield sizes that the node's model may have, the smallest first, with their parameters."""
        like = self.folder / self.runs[0].rung.name
        heads = 0
        while True:
            heads = max(heads + 1, round(1.1 * heads))  # a third more parameters
            size = rungs.Size.of(self.node, heads)
            yield size, rungs.parameters(self.node, size, like)

    def proof(self) -> Rung:
        """Return a run of four times the largest rung's operations, of the next larger size."""
        largest = max(self.runs, key=lambda run: run.operations)
        size = rungs.Size.of(self.node, max(run.rung.size.num_attention_heads for run in self.runs) + 1)
        parameters = rungs.parameters(self.node, size, self.folder / largest.rung.name)
        return Rung(size, round(_PROOF * largest.parameters * largest.rung.steps / parameters))


def climbed(whole: profile.Profile, node: Node, runs: Path, options: Options) -> Ladder:
    """Train and measure the rungs, or find them finished, and fit the law."""
    sizes, folder = rungs.sizes(node, options.heads), runs / rungs.FOLDER / node.name
    with tempfile.TemporaryDirectory() as scratch:
        text, parameters = rungs.look(whole, node, runs, Path(scratch), sizes)
    planned = rungs.grid(text, parameters, options.share, options.counts)
    say(
        "ladder",
        f"{node.name}: one pass over the text is {text.steps:,} steps, {text.steps * text.tokens:,.0f} tokens; {len(planned)} rungs",
    )
    found = [_run(node, rung, folder) for rung in planned]
    fit = law.fit([law.Point(run.parameters, run.tokens, run.loss) for run in found])
    return Ladder(node, folder, text, found, fit)


def _run(node: Node, rung: Rung, folder: Path) -> Measured:
    return rungs.measured(rung, rungs.train(node, rung, folder))


def rendered(ladder: Ladder) -> Iterator[str]:
    """Yield the rungs beside what the law says of them, and the law with its intervals."""
    yield f"{'run':<12} {'parameters':>12} {'tokens':>12} {'operations':>10} {'tokens/s':>9} {'loss':>6}  {'law':>6}"
    for run in ladder.runs:
        expected = ladder.fit.law.loss(run.parameters, run.tokens)
        yield (
            f"{run.rung.name:<12} {run.parameters:>12,} {run.tokens:>12,} {run.operations:>10.1e} {run.tokens / run.seconds:>9,.0f} "
            f"{run.loss:>6.3f}  {expected:>6.3f}"
        )
    yield ladder.fit.law.told()
    most = max(abs(run.loss / ladder.fit.law.loss(run.parameters, run.tokens) - 1) for run in ladder.runs)
    names = {"floor": "E", "alpha": "the exponent of N", "beta": "of D"}
    between = ", ".join(
        f"{told} {low:.2f} to {high:.2f}" for name, told in names.items() for low, high in [ladder.fit.between(name)]
    )
    yield f"95% intervals, by a bootstrap over the {len(ladder.runs)} runs: {between}; the law misses a run by up to {most:.1%}"


def advised(ladder: Ladder, options: Options, machine: devices.Machine) -> tuple[list[advice.Choice], advice.Choice]:
    """Return what the budget pays for, and the best of it."""
    a_token = advice.speed(ladder.runs, machine, options.utilisation)
    text, fewest = ladder.text.steps * ladder.text.tokens, min(run.tokens for run in ladder.runs)
    found = advice.choices(ladder.fit, ladder.sized(), options.hours * 3600, a_token, text, fewest)
    return found, advice.best(found)


def told(ladder: Ladder, found: Sequence[advice.Choice], best: advice.Choice) -> Iterator[str]:
    """Yield the sizes around the best one with the loss to expect of each, and the best one in words."""
    bits, at = ladder.runs[0].bits, found.index(best)
    yield f"{'size':<9} {'parameters':>12} {'tokens':>14} {'passes':>7}  {'loss, 95% interval':<22} bits a byte"
    for one in found[max(0, at - advice.SHOWN) : at + advice.SHOWN + 1]:
        yield (
            f"{one.size.name:<9} {one.parameters:>12,} {one.tokens:>14,.0f} {one.passes:>7.2f}  {one.loss:.3f} [{one.low:.3f}, {one.high:.3f}]  "
            f"{one.loss * bits:.3f} [{one.low * bits:.3f}, {one.high * bits:.3f}]{'  <- best' if one is best else ''}"
        )
    yield from advice.warnings(best, ladder.runs)


def proved(ladder: Ladder) -> dict[str, Any]:
    """Train the run of four times the operations; return what was predicted of it and what it reached."""
    run = _run(ladder.node, ladder.proof(), ladder.folder)
    value, low, high = ladder.fit.interval(run.parameters, run.tokens)
    off = value / run.loss - 1
    times = run.operations / max(one.operations for one in ladder.runs)
    where = "within" if low <= run.loss <= high else "outside of"
    say(
        "ladder",
        f"proof: {times:.2f} times the operations: predicted {value:.3f} [{low:.3f}, {high:.3f}], reached {run.loss:.3f}: {off:+.1%}, {where} the interval",
    )
    return {"run": run.rung.name, "times": times, "predicted": value, "low": low, "high": high, "reached": run.loss}


def main() -> int:
    """Climb the ladder of one node, and say what it advises."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    options, flags = requested(sys.argv[1:])
    whole = profile.load(profile.find(str(flags.get("profile", "tiny"))))
    node = rungs.chosen(whole, str(flags.get("node", "")))
    machine = devices.chosen(str(flags.get("on", "")))
    runs = Path(str(flags.get("runs", "runs"))) / whole.name
    ladder = climbed(whole, node, runs, options)
    for line in rendered(ladder):
        say("ladder", line)
    record: dict[str, Any] = {
        "node": node.name, "law": dataclasses.asdict(ladder.fit.law), "text": dataclasses.asdict(ladder.text),
        "runs": [dataclasses.asdict(run) | {"loss": run.loss} for run in ladder.runs],
    }  # fmt: skip
    if options.prove:
        record["proof"] = proved(ladder)
    found, best = advised(ladder, options, machine)
    where = "this machine" if machine.here else f"{machine.name} at {options.utilisation:.0%} of their peak, which is assumed"
    say("ladder", f"{table.duration(options.hours * 3600)} of training on {where}:")
    for line in told(ladder, found, best):
        say("ladder", line)
    keys = rungs.taken_over(node, best.size, round(best.tokens / ladder.text.tokens), ladder.text)
    how = "written to" if options.write else "to take it over by hand, or with --write yes, in"
    say("ladder", f"{how} {node.file}:")
    for key, value in keys.items():
        print(f"{key}: {value}")
    if options.write:
        rungs.write(node, keys)
    manifest.write_json(
        ladder.folder.with_suffix(".json"),
        record | {"hours": options.hours, "on": machine.name, "best": dataclasses.asdict(best)},
    )
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))

"""Which size and how many tokens are best for a budget of hours, by the law and by how fast each size trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.commands._ladder.law import Fit
from pipeline.commands._ladder.rungs import Measured, Size
from pipeline.commands._plan.devices import Machine
from pipeline.system.errors import UserError

_WORN = 15.387756  # passes after which a repeated text has taught most of what it can (Muennighoff et al. 2023, R*_D)
SHOWN = 2  # sizes on either side of the best one
REPEATED = 4  # passes up to which they find a repeated text nearly as good as a new one


@dataclasses.dataclass(frozen=True)
class Choice:
    """A size with as many tokens as the budget pays for."""

    size: Size
    parameters: int
    tokens: float
    passes: float  # over the text
    loss: float  # expected, nats a held-out token
    low: float
    high: float

    @property
    def operations(self) -> float:
        """Floating point operations, as those of the rungs are counted."""
        return 6 * self.parameters * self.tokens


def effective(tokens: float, text: float) -> float:
    """Return as how many new tokens so many count that repeat a text (Muennighoff et al. 2023, eq. 5)."""
    if tokens <= text:
        return tokens
    return text * (1 + _WORN * (1 - math.exp(-(tokens / text - 1) / _WORN)))


def speed(runs: Sequence[Measured], machine: Machine, utilisation: float) -> Callable[[float], float]:
    """Return parameters → seconds for a token: as the rungs took on this machine, or at a share of another's peak.

    A token takes a constant time and one in proportion to the parameters, so that small models use less of the machine.
    """
    if not machine.here:
        return lambda parameters: machine.seconds(6 * parameters, utilisation)
    taken = np.array([run.seconds / run.tokens for run in runs])
    sizes = np.array([float(run.parameters) for run in runs])
    constant, slope = np.linalg.lstsq(np.stack([1 / taken, sizes / taken], 1), np.ones(len(runs)), rcond=None)[0].tolist()
    if constant < 0 or slope < 0:  # times of a busy machine: in proportion to the parameters alone, at the best rate
        constant, slope = 0.0, float((taken / sizes).min())
    return lambda parameters: constant + slope * parameters


def choices(
    fit: Fit, sized: Iterator[tuple[Size, int]], seconds: float, a_token: Callable[[float], float], text: float, fewest: float
) -> list[Choice]:
    """Return what the budget pays for, from the smallest size on to two beyond the best one.

    None has fewer tokens than the shortest rung, since the law knows nothing of such runs.

    `sized`: sizes with their parameters, growing; `a_token`: parameters → seconds; `text`: tokens of a pass; `fewest`: tokens of
    the shortest rung. UserError where the budget is too small.
    """
    found: list[Choice] = []
    for size, parameters in sized:
        tokens = seconds / a_token(parameters)
        if tokens < fewest:
            if not found:
                least = fewest * a_token(parameters) / 3600
                raise UserError(
                    f"HOURS={seconds / 3600:.3g}: is too small: it pays for {tokens:,.0f} tokens of the smallest size, and the shortest rung "
                    f"read {fewest:,.0f}; give at least HOURS={math.ceil(least * 1000) / 1000:g}"
                )
            break
        loss, low, high = fit.interval(parameters, effective(tokens, text))
        found.append(Choice(size, parameters, tokens, tokens / text, loss, low, high))
        if found.index(best(found)) < len(found) - SHOWN:
            break
    return found


def best(found: Sequence[Choice]) -> Choice:
    """Return the choice with the least expected loss."""
    return min(found, key=lambda one: one.loss)


def warnings(choice: Choice, runs: Sequence[Measured]) -> Iterator[str]:
    """Yield in words what speaks against relying on a choice."""
    beyond = choice.operations / max(run.operations for run in runs)
    if beyond > 10:
        yield f"that is {beyond:,.0f} times the operations of the largest rung: take a larger --share before you rely on it"
    if choice.passes > REPEATED:
        yield (
            f"the text is too small for the budget: it would be read {choice.passes:.1f} times, and beyond {REPEATED} a pass teaches less and "
            "less; more text is worth more than more hours"
        )
    elif choice.passes > 1:
        yield f"the text is read {choice.passes:.1f} times; every rung read it less than once, so what a repetition is worth is assumed"

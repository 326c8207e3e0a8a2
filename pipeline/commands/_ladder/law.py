"""The loss of a model of N parameters after D tokens: L(N, D) = E + A / N^α + B / D^β (Hoffmann et al. 2022, eq. 2).

It is fitted to measured runs as there (eq. 3): the Huber loss of log L is minimised from several starts. The interval
comes from a bootstrap over the runs: their residuals, widened for the parameters that were fitted to them, are drawn anew, and
each draw is fitted again.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

PARAMETERS = 5  # E, A, α, B, β
SIZES, COUNTS = 3, 3  # different ones that are needed at least: two leave the exponent of either free
_DELTA = 1e-2  # of the Huber loss, in log loss: a run within 1% counts by its square. Hoffmann's 1e-3 is for hundreds of runs
_EXPONENTS, _FLOORS = (
    (0.15, 0.35, 0.7, 1.2),
    (0.3, 0.6, 0.9),
)  # starts: of both exponents, and of E as a share of the least loss
_DRAWS, _LEVEL, _ITERATIONS = 1000, 0.95, 200
_LEAST = 1e-3  # nats: the smallest E


@dataclasses.dataclass(frozen=True)
class Point:
    """A run that was measured."""

    parameters: float
    tokens: float  # that it read, a text read again counting as `effective` says
    loss: float  # nats a token, held out


@dataclasses.dataclass(frozen=True)
class Law:
    """The fitted law."""

    floor: float  # E, nats a token
    a: float  # A, in units of the runs' geometric mean of N
    alpha: float
    b: float  # B, in those of D
    beta: float
    mean_parameters: float
    mean_tokens: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Return the expected loss in nats a token, of numbers or arrays."""
        by_size = self.a * (parameters / self.mean_parameters) ** -self.alpha
        by_text = self.b * (tokens / self.mean_tokens) ** -self.beta
        return self.floor + by_size + by_text

    def told(self) -> str:
        """Return it as an equation, with A and B of eq. 2."""
        a, b = self.a * self.mean_parameters**self.alpha, self.b * self.mean_tokens**self.beta
        return f"L(N, D) = {self.floor:.3f} + {a:.4g} / N^{self.alpha:.3f} + {b:.4g} / D^{self.beta:.3f}"


@dataclasses.dataclass(frozen=True)
class Fit:
    """The law with what the runs leave open."""

    law: Law
    draws: Sequence[Law]  # fitted to bootstrap draws of the runs
    residuals: np.ndarray  # (runs,) of log loss, widened by √(n / (n − parameters))

    def interval(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """Return the loss that a run is expected to reach, and the bounds of a 95% interval for a single run."""
        chosen = np.random.default_rng(1)
        found = [law.loss(parameters, tokens) * math.exp(chosen.choice(self.residuals)) for law in self.draws]
        low, high = np.quantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        value = float(self.law.loss(parameters, tokens))
        return value, min(value, float(low)), max(value, float(high))

    def between(self, name: str) -> tuple[float, float]:
        """Return the interval of a parameter of the law, by its name."""
        low, high = np.quantile([getattr(law, name) for law in self.draws], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return float(low), float(high)


def fit(points: Sequence[Point], draws: int = _DRAWS, seed: int = 0) -> Fit:
    """Fit the law; ValueError where there are too few runs for its parameters (see `too_few`)."""
    if told := too_few(points):
        raise ValueError(told)
    losses = np.array([point.loss for point in points])
    starts = _starts(losses)
    reached, value = _fitted(points, np.tile(losses, (len(starts), 1)), starts)
    law = reached[int(value.argmin())]
    expected = np.array([law.loss(point.parameters, point.tokens) for point in points])
    residuals = np.log(losses / expected)
    residuals = (residuals - residuals.mean()) * math.sqrt(len(points) / (len(points) - PARAMETERS))
    drawn = np.random.default_rng(seed).choice(residuals, (draws, len(points)))
    begin = [math.log(law.floor), math.log(law.a), law.alpha, math.log(law.b), law.beta]
    again, _ = _fitted(points, expected * np.exp(drawn), np.tile(begin, (draws, 1)))
    return Fit(law, again, residuals)


def too_few(points: Sequence[Point]) -> str:
    """Return in words why so few runs can't tell the law, or ""."""
    sizes, counts = {point.parameters for point in points}, {point.tokens for point in points}
    if len(points) <= PARAMETERS or len(sizes) < SIZES or len(counts) < COUNTS:
        return (
            f"{len(points)} runs of {len(sizes)} sizes and {len(counts)} token counts can't tell a law of {PARAMETERS} parameters; "
            f"at least {SIZES} sizes and {COUNTS} token counts are needed, and {PARAMETERS + 1} runs"
        )
    return ""


def _starts(losses: np.ndarray) -> np.ndarray:
    """Return where the fit begins, (starts, 5): log E, log A, α, log B, β, with A and B sharing what E leaves."""
    found = []
    for alpha, beta, share in itertools.product(_EXPONENTS, _EXPONENTS, _FLOORS):
        floor = share * losses.min()
        rest = math.log((losses.mean() - floor) / 2)
        found.append([math.log(floor), rest, alpha, rest, beta])
    return np.array(found)


def _fitted(points: Sequence[Point], losses: np.ndarray, starts: np.ndarray) -> tuple[list[Law], np.ndarray]:
    """Return the laws that are reached from starts, and the Huber loss of each.

    `losses`: (starts, runs) nats a token, as each start is a problem of its own; `starts`: (starts, 5). All go on at once, by the
    method of Levenberg and Marquardt with the weights of the Huber loss: 200 draws by torch's L-BFGS take fifteen seconds.
    """
    sizes, tokens = (np.log([getattr(point, name) for point in points]) for name in ("parameters", "tokens"))
    x, y, wanted = sizes - sizes.mean(), tokens - tokens.mean(), np.log(losses)
    found, damping = starts.copy(), np.full(len(starts), 1e-2)
    error, jacobian = _errors(found, x, y, wanted)
    value = _huber(error).sum(1)
    for _ in range(_ITERATIONS):
        weight = np.minimum(1, _DELTA / np.maximum(np.abs(error), 1e-300))[:, None]
        normal = (jacobian * weight) @ jacobian.transpose(0, 2, 1)
        scale = damping[:, None, None] * (normal * np.eye(PARAMETERS)) + 1e-12 * np.eye(PARAMETERS)
        step = np.linalg.solve(normal + scale, (jacobian * weight) @ error[..., None])[..., 0]
        tried = found + np.clip(step, -1, 1)
        tried[:, 0] = np.maximum(tried[:, 0], math.log(_LEAST))
        other, slopes = _errors(tried, x, y, wanted)
        reached = _huber(other).sum(1)
        better = reached < value
        found[better], error[better], jacobian[better], value[better] = (
            tried[better],
            other[better],
            slopes[better],
            reached[better],
        )
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
    means = math.exp(sizes.mean()), math.exp(tokens.mean())
    return [Law(math.exp(e), math.exp(a), alpha, math.exp(b), beta, *means) for e, a, alpha, b, beta in found.tolist()], value


def _errors(found: np.ndarray, x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what log loss misses, (starts, runs), and the slopes of log loss, (starts, 5, runs)."""
    floor, a, alpha, b, beta = found.T[..., None]
    terms = np.stack([floor + 0 * x, a - alpha * x, b - beta * y], 1)
    most = terms.max(1, keepdims=True)
    total = np.exp(terms - most).sum(1, keepdims=True)
    by_floor, by_size, by_text = np.moveaxis(np.exp(terms - most) / total, 1, 0)
    return wanted - (most + np.log(total))[:, 0], np.stack([by_floor, by_size, -by_size * x, by_text, -by_text * y], 1)


def _huber(error: np.ndarray) -> np.ndarray:
    far = np.abs(error)
    return np.where(far < _DELTA, error**2 / 2, _DELTA * (far - _DELTA / 2))

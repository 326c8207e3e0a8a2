"""Preference pairs from the answers that a model gave to one prompt: the best and the worst by score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.data import types
from pipeline.data.types import Row
from pipeline.system.config import option
from pipeline.training.answers import Answer, Prompt, Sampled, Tally

if TYPE_CHECKING:
    from pipeline.chain.run import Run

MAKES = "preference"
_RESAMPLES = 1000  # bootstrap resamples behind an interval


@dataclass(frozen=True)
class PairOptions(Sampled):
    """What is sampled, and what makes a pair of it."""

    prompts: int = option(0, "prompts for training that are answered, at most, spread over all; 0: all", at_least=0)
    held_out_prompts: int = option(400, "held-out prompts that are answered, at most, spread over all; 0: all", at_least=0)
    margin: float = option(0.0, "least difference of the rewards of both sides, which differ in any case", at_least=0.0)
    truncated: Literal["rejected", "neither", "both"] = option(
        "rejected", "sides on which an answer that was cut off may stand: rejected, neither, or both"
    )
    seed: int = option(42, "of the draws")


def choose(scored: Sequence[Answer], options: PairOptions) -> tuple[Answer, Answer] | str:
    """Return the best and the worst answer that may stand on their side, or why there is no pair; `scored`: the best first."""
    if len(scored) < 2:
        return "fewer than two answers could be scored"
    chosen = next((one for one in scored if one.ended or options.truncated == "both"), None)
    rejected = next((one for one in reversed(scored) if one.ended or options.truncated != "neither"), None)
    if chosen is None or rejected is None:
        return "every answer was cut off"
    difference = float(chosen.score or 0.0) - float(rejected.score or 0.0)
    if difference <= 0:
        return "no answer better than another that may stand beside it"
    return (chosen, rejected) if difference >= options.margin else "difference of the rewards below the margin"


@dataclass
class Pairing:
    """What came of the prompts of a split."""

    options: PairOptions
    dropped: Counter[str]
    tally: Tally = field(default_factory=Tally)
    scores: list[tuple[float, float, float]] = field(default_factory=list)  # of each prompt: best, mean, worst
    sides: list[tuple[float, float]] = field(default_factory=list)  # of each pair: chosen, rejected

    def rows(self, answered: Iterable[tuple[Prompt, Sequence[Answer]]]) -> Iterator[Row]:
        """Yield a pair for each prompt whose answers make one, and count why others don't."""
        fault = types.load(MAKES).fault
        for prompt, group in answered:
            scored = self.tally.add(group)
            known = [float(one.score or 0.0) for one in scored]
            if known:
                self.scores.append((known[0], sum(known) / len(known), known[-1]))
            pair = choose(scored, self.options)
            if isinstance(pair, str):
                self.dropped[pair] += 1
                continue
            chosen, rejected = ([{"role": "assistant", "content": one.text}] for one in pair)
            row = {"prompt": prompt.row["prompt"], "chosen": chosen, "rejected": rejected}
            if reason := fault(row):
                self.dropped[reason] += 1
                continue
            self.sides.append((float(pair[0].score or 0.0), float(pair[1].score or 0.0)))
            yield row

    def told(self) -> str:
        """Return in words what came of the prompts."""
        lost = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items()) or "none"
        mean = self.tally.mean_reward
        reward = "" if mean is None else f", mean reward {mean:.3f}"
        return (
            f"{len(self.sides):,} pairs of {self.tally.counts['completions']:,} answers{reward}; prompts without a pair: {lost}"
        )

    def record(self) -> dict[str, Any]:
        """Return what the manifest says of the split."""
        means = {
            name: sum(side[place] for side in self.sides) / len(self.sides)
            for place, name in enumerate(("mean_chosen", "mean_rejected"))
            if self.sides
        }
        told = {"pairs": len(self.sides), "dropped": dict(self.dropped), **self.tally.counts}
        return told | {"mean_reward": self.tally.mean_reward} | means


def evaluation(run: Run, held_out: Pairing) -> dict[str, Any] | None:
    """Return the figures of the held-out prompts in the form that the evaluation gives those of a node; None without any."""
    from pipeline.evaluation.comparisons import block, collected
    from pipeline.evaluation.intervals import share
    from pipeline.evaluation.metrics import Measurement, Metric
    from pipeline.evaluation.subject import about

    if not held_out.scores:
        return None
    what = f"of {run.options.answers} sampled to a held-out prompt, by the rewards of the node"
    metrics = (
        Metric("best_reward", f"mean reward of the best answer {what}", "score", "more"),
        Metric("mean_reward", f"mean reward of an answer {what}", "score", "more"),
        Metric("worst_reward", f"mean reward of the worst answer {what}", "score", "more"),
        Metric("paired", "share of the held-out prompts whose answers made a pair", "share", ""),
    )
    columns = list(zip(*held_out.scores, strict=True))
    made, prompts = len(held_out.sides), held_out.tally.counts["groups"]
    columns.append((*[1.0] * made, *[0.0] * (prompts - made)))
    found = [Measurement(run.name, metric.name, share(column)) for metric, column in zip(metrics, columns, strict=True)]
    return {
        "stage": run.stage.kind, "title": run.stage.title, "of": about(prompts, "prompts", run.recipe.name), "rows": prompts,
        **block(run.name, {run.name: {"role": "node", "asked": ""}}, collected(found), metrics, (), _RESAMPLES),
        "skipped": dict(held_out.dropped),
    }  # fmt: skip

"""Answers that a node samples from a model and scores before it does anything with them, kept on disk block by block.

What is drawn for an answer depends on its key alone and the prompts of a block on their order, so a node that is killed
loses one block at most and ends with the answers that it would have had.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.chain import blocks
from pipeline.data.types import Row
from pipeline.system import process, signals
from pipeline.system.config import option
from pipeline.system.errors import Stopped, UserError
from pipeline.training.rewarded import ROLE, Scored, parts

if TYPE_CHECKING:
    from pipeline.chain.run import Run

BLOCK = 512  # answers that are sampled before they are kept on disk
_QUIET = 20.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Sampled(Scored):
    """Options of a stage that samples several answers to each prompt and scores them."""

    answers: int = option(8, "answers that are sampled to each prompt", at_least=1)
    max_new_tokens: int = option(64, "longest answer; a longer one is cut off, which is counted", at_least=1)
    temperature: float = option(1.0, "of the sampling", at_least=0.01)


class Answer(NamedTuple):
    """One sampled answer."""

    text: str
    ids: Sequence[int]  # as they were sampled, the token that ends it included
    ended: bool  # False: cut off at `max_new_tokens`
    score: float | None  # None where a reward could not score it


class Prompt(NamedTuple):
    """A prompt, with its place among the rows of the recipe."""

    number: int
    row: Row


@dataclass(frozen=True)
class Prompts(Sequence[Prompt]):
    """Some of the rows of a recipe, each read when it is asked for."""

    rows: Sequence[Row]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        return Prompt(self.numbers[place], self.rows[self.numbers[place]])

    def select(self, places: Iterable[int]) -> Prompts:
        """Return those at some places."""
        return Prompts(self.rows, [self.numbers[place] for place in places])


class Sampler:
    """Samples and scores answers for a node, a block of prompts at a time; `failures` counts what no reward could score."""

    def __init__(self, run: Run, tokenizer: Any) -> None:
        from pipeline.rewards.mixture import Mixture

        self.run, self.tokenizer = run, tokenizer
        self.mixture = Mixture(parts(run.options, run.parents.get(ROLE, "")))
        self.failures: Counter[str] = Counter()

    def groups(
        self, model: Any, prompts: Sequence[Prompt], name: str, key: Sequence[Any], mark: str
    ) -> Iterator[tuple[Prompt, list[Answer]]]:
        """Yield each prompt with its answers; `name` of the blocks, `key` of the draws (seed, stage, split or round).

        `mark` says what model they are sampled from: blocks of another one are made again. With several processes each
        makes its share of the blocks. A signal that waits for a trainer ends this between two blocks.
        """
        size = max(1, BLOCK // self.run.options.answers)
        count = -(-len(prompts) // size)
        if process.count() > 1:
            for number in range(process.rank(), count, process.count()):
                part = prompts[number * size : (number + 1) * size]
                self._block(model, part, f"{name}-{number:05}", key, mark)
            process.wait_for_all()
        told = time.time()
        for number in range(count):
            part = prompts[number * size : (number + 1) * size]
            found = self._block(model, part, f"{name}-{number:05}", key, mark)
            self.failures.update(found["failures"])
            yield from zip(part, ([Answer(*answer) for answer in group] for group in found["groups"]), strict=True)
            if time.time() > told + _QUIET:
                self.run.say(f"{name}: {number * size + len(part):,} of {len(prompts):,} prompts are answered")
                told = time.time()

    def _block(self, model: Any, part: Sequence[Prompt], name: str, key: Sequence[Any], mark: str) -> Mapping[str, Any]:
        """Return a block from disk, or make it and keep it there."""
        from pipeline.training.rollouts import sample

        block = blocks.kept(self.run.output, name, self.run.say)
        if block and block.mark == mark:
            return dict(block.value)
        if model is None:
            raise UserError(
                f"--output {self.run.output}: block {name} of the answers that are learned from is missing or damaged; "
                "move the folder away and run the same command again"
            )
        if signum := signals.pending_signal():
            raise Stopped(
                signum, f"{self.run.name}: stopped; the answers so far are kept and the same command goes on from there"
            )
        options = self.run.options
        rows, numbers = [prompt.row for prompt in part], [prompt.number for prompt in part]
        found = sample(model, self.tokenizer, rows, key, options.answers, options.max_new_tokens, options.temperature, numbers)
        before = Counter(self.mixture.failures)
        scores = iter(self.mixture.scores([one for group in found for one in group]))
        groups = [[[one.text, list(one.ids), one.ended, next(scores)] for one in group] for group in found]
        made = {"groups": groups, "failures": dict(self.mixture.failures - before)}
        blocks.keep(self.run.output, name, blocks.Block(mark, made))
        return made


def fitting(run: Run, rows: Sequence[Row], tokenizer: Any, positions: int, most: int = 0) -> tuple[Prompts, Counter[str]]:
    """Return the prompts that leave room for an answer among `positions`, and how many were dropped for which reason.

    `most`: how many are wanted, spread over all; 0: all. Raises UserError where there is room for no prompt.
    """
    from pipeline.data import shown
    from pipeline.models.tokenization import render

    shown.asked(rows, tokenizer)
    room = positions - run.options.max_new_tokens
    if room < 1:
        raise UserError(
            f"max_new_tokens: {run.options.max_new_tokens} leaves no position for a prompt; the parent has {positions}"
        )
    kept = [number for number, row in enumerate(rows) if len(render(tokenizer, row["prompt"], answer_next=True)) <= room]
    dropped = Counter({f"longer than {room} tokens, which leaves no room for an answer": len(rows) - len(kept)})
    wanted = kept[:: -(-len(kept) // most)] if most and kept else kept
    dropped["beyond the number of prompts that is asked for"] = len(kept) - len(wanted)
    return Prompts(rows, wanted), +dropped


class Tally:
    """Counts of sampled answers, and the mean of their scores."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._sum = 0.0

    def add(self, group: Sequence[Answer]) -> list[Answer]:
        """Count the answers to one prompt; return those that have a score, the best first, of equals the one sampled first."""
        scored = sorted((one for one in group if one.score is not None), key=lambda one: -float(one.score or 0.0))
        known = [float(one.score or 0.0) for one in scored]
        alike = len(known) < 2 or known[0] == known[-1]
        self.counts.update(
            groups=1, alike_groups=int(alike), completions=len(group), truncated=sum(not one.ended for one in group),
            unscored=len(group) - len(scored), sampled_tokens=sum(len(one.ids) for one in group),
        )  # fmt: skip
        self._sum += sum(known)
        return scored

    @property
    def mean_reward(self) -> float | None:
        """The mean score of the answers that have one."""
        scored = self.counts["completions"] - self.counts["unscored"]
        return self._sum / scored if scored else None

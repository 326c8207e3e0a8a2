"""Rounds of rejection sampling: sample answers from the current model, train on the best that pass, repeat.

Dong et al. 2023 (RAFT), algorithm 1; Gulcehre et al. 2023 (ReST), who call sampling the grow step and training the improve
step. One trainer serves all rounds, each of which is an epoch of it, so that checkpoints, log and schedule are those of
any stage. A checkpoint is saved at the end of each round, before the next one samples.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset, SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline import objectives
from pipeline.chain import blocks
from pipeline.data.tokens import answered
from pipeline.models.tokenization import render
from pipeline.system.errors import UserError
from pipeline.training import references
from pipeline.training.answers import Answer, Prompts, Sampler, Tally
from pipeline.training.trainer import ROW, ObjectiveTrainer

if TYPE_CHECKING:
    from pipeline.chain.run import Run

Example = dict[str, Any]
LOGGED = ("round", "sampled", "passed", "kept", "mean_reward")  # of a round, in each line of the log


class Selection:
    """What is kept of a round's answers, and what is not, by reason; the reasons and what is kept add up to all answers."""

    def __init__(self, threshold: float, keep: int) -> None:
        self.threshold, self.most = threshold, keep
        self.tally, self.dropped = Tally(), Counter[str]()
        self.passed = self.kept = self.without = 0
        self._kept_reward = 0.0

    def choose(self, group: Sequence[Answer]) -> list[Answer]:
        """Return the best answers to a prompt that pass, each only once: they reach the threshold, and ended."""
        scored = self.tally.add(group)
        good = [one for one in scored if float(one.score or 0.0) >= self.threshold]
        ended = [one for one in good if one.ended]
        distinct = dict[tuple[int, ...], Answer]()
        for one in ended:
            distinct.setdefault(tuple(one.ids), one)
        chosen = list(distinct.values())[: self.most]
        self.dropped.update({
            "no score": len(group) - len(scored), "below the threshold": len(scored) - len(good), "cut off": len(good) - len(ended),
            "duplicates": len(ended) - len(distinct), "beyond the best": len(distinct) - len(chosen),
        })  # fmt: skip
        self.passed, self.kept, self.without = self.passed + len(ended), self.kept + len(chosen), self.without + (not chosen)
        self._kept_reward += sum(float(one.score or 0.0) for one in chosen)
        return chosen

    def record(self, number: int) -> dict[str, Any]:
        """Return what log and manifest say of a round."""
        counts = self.tally.counts
        return {
            "round": number, "prompts": counts["groups"], "sampled": counts["completions"], "passed": self.passed, "kept": self.kept,
            "mean_reward": self.tally.mean_reward, "mean_reward_kept": self._kept_reward / self.kept if self.kept else None,
            "prompts_where_nothing_passed": self.without, "dropped": dict(+self.dropped), "truncated": counts["truncated"],
            "alike_groups": counts["alike_groups"], "sampled_tokens": counts["sampled_tokens"],
        }  # fmt: skip


class Rounds(Dataset[Example]):
    """The answers that the round under way learns from, read over and over until its steps are done.

    The prompts of a round, and with them its answers, stand in an order drawn from (seed, stage, round); each further
    pass has an order of its own. Before any round has begun, as in the mask proof, answers of the first one are sampled
    from the model that `opened` returns, as many as are read.
    """

    def __init__(self, run: Run, prompts: Prompts, tokenizer: Any, length: int, opened: Callable[[], Any]) -> None:
        self.run, self.prompts, self.tokenizer, self.length, self.opened = run, prompts, tokenizer, length, opened
        self.sampler = Sampler(run, tokenizer)
        self.number = 0  # of the round, from 0
        self.told: dict[int, dict[str, Any]] = {}  # of each round that was read
        self.examples: list[Example] = []
        self._source: Iterator[Example] | None = None
        self._order: tuple[int, int, list[int]] = (0, 0, [])  # of a pass: round, pass, places

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> Example:
        if self._source is None:
            self._source = self._answers(0, self.opened())
        while place >= len(self.examples) and (example := next(self._source, None)):
            self.examples.append(example)
        turn, at = divmod(place, len(self.examples))
        example = self.examples[self._places(turn)[at] if turn else at]
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in example.items()}

    def begin(self, number: int, model: Any) -> None:
        """Sample the answers of a round from a model, or go on with those that are kept on disk where it is None.

        Raises UserError where nothing passes, or the answers on disk are not whole.
        """
        self.number, self._source = number, iter(())
        self.run.say(f"round {number + 1} of {self.run.options.rounds}: {self.run.options.answers} answers to each prompt")
        self.examples = list(self._answers(number, model))
        told = self.told[number]
        rest = ", ".join(f"{count:,} {reason}" for reason, count in told["dropped"].items()) or "none"
        said = f"{told['sampled']:,} answers, {told['passed']:,} passed, {told['kept']:,} kept; the rest: {rest}"
        if not self.examples:
            if not number:
                blocks.forget(self.run.output)
            raise UserError(
                f"round {number + 1}: nothing passed of {said}; lower threshold ({self.run.options.threshold}) or raise answers"
            )
        self.run.say(
            f"round {number + 1}: {said}; mean reward {told['mean_reward']:.3f}, each is read {self.length / len(self.examples):.1f} times"
        )

    def summary(self, parameters: int, flops: float) -> dict[str, Any]:
        """Return what the manifest says of all rounds, those of earlier processes read from disk, and of their operations.

        `flops`: of training; sampling adds two for each parameter and token.
        """
        for number in range(self.run.options.rounds):
            if number not in self.told:
                for _ in self._answers(number, None):
                    pass
        rounds = [self.told[number] for number in sorted(self.told)]
        sampled = sum(found["sampled_tokens"] for found in rounds)
        return {"rounds": rounds, "failures": dict(self.sampler.failures), "flops": flops + 2.0 * parameters * sampled}

    def _answers(self, number: int, model: Any) -> Iterator[Example]:
        """Yield what a round learns from: the tokens of prompt and answer, those of the answer being the targets."""
        options, kind = self.run.options, self.run.stage.kind
        order = random.Random(f"{self.run.seed}/{kind}/{number}").sample(range(len(self.prompts)), len(self.prompts))
        prompts = self.prompts.select(order[: options.prompts or None])
        name, selection = f"round{number + 1}", Selection(options.threshold, options.keep)
        first = None if model is not None else blocks.kept(self.run.output, f"{name}-00000", self.run.say)
        mark = references.identity(model) if model is not None else first.mark if first else ""
        for prompt, group in self.sampler.groups(model, prompts, name, (self.run.seed, kind, number), mark):
            asked = render(self.tokenizer, prompt.row["prompt"], answer_next=True)
            for answer in selection.choose(group):
                columns = answered(asked, answer.ids).items()
                yield {name: np.array(ids, np.int32) for name, ids in columns} | {ROW: prompt.number}
        self.told[number] = selection.record(number + 1)

    def _places(self, turn: int) -> list[int]:
        """Return the order of a pass after the first."""
        if self._order[:2] != (self.number, turn):
            drawn = random.Random(f"{self.run.seed}/{self.run.stage.kind}/{self.number}/{turn}")
            self._order = (self.number, turn, drawn.sample(range(len(self.examples)), len(self.examples)))
        return self._order[2]


class _EndOfRound(TrainerCallback):
    """Saves at the end of each round."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint, unless none is wanted at all."""
        if state.global_step % self.steps == 0 and args.save_strategy != "no":
            control.should_save = True


class RoundTrainer(ObjectiveTrainer):
    """An ObjectiveTrainer of the answers' likelihood that samples anew at the beginning of each epoch, which is a round."""

    progress = ("mean_reward",)
    samples = True
    train_dataset: Rounds

    def __init__(self, model: Any, arguments: Any, *given: Any, **named: Any) -> None:
        self.steps = arguments.max_steps // given[-1].run.options.rounds
        super().__init__(objectives.load("causal"), model, arguments, *given, callbacks=[_EndOfRound(self.steps)], **named)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return in_order(self.args, dataset if dataset is not None else self.train_dataset)

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        """Sample before the first step of a round; one that is under way goes on with its answers."""
        done, number = self.state.global_step, named["epoch"]
        if done < self.state.max_steps:
            self.train_dataset.begin(number, self._merged() if done == number * self.steps else None)
        super()._run_epoch(*arguments, **named)

    def _merged(self) -> Any:
        """Return the model as it is, of an adapter's a merged copy, which samples faster."""
        model = self.accelerator.unwrap_model(self.model)
        return copy.deepcopy(model).merge_and_unload() if hasattr(model, "merge_and_unload") else model

    def log(self, logs: dict[str, float], *more: Any, **named: Any) -> None:
        """Add to a log of training what was sampled and kept in its round."""
        if "loss" in logs:
            told = self.train_dataset.told[self.train_dataset.number]
            logs |= {name: told[name] for name in LOGGED}
        super().log(logs, *more, **named)


def in_order(arguments: Any, dataset: Any) -> SequentialSampler:
    """Return the order of a data set that has one of its own."""
    return SequentialSampler(dataset)

"""Checkpoints while a trainer is at work: sealed, pruned, asked for by signals."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.chain import manifest, resume
from pipeline.chain.run import Run
from pipeline.system import process, signals

_EPOCH = 1e-6  # of an epoch, less than any step
SECONDS = "seconds.json"  # in a checkpoint: for how long it was trained


class Keeper(TrainerCallback):
    """Seal each checkpoint before an older one goes, and stop at a step's end where a signal asked for it.

    Where a resume would not be exact, as between two generations of a trainer that samples, both wait for a later step.
    """

    def __init__(self, run: Run, keep: int | None, resumes_exactly: Callable[[int], bool]) -> None:
        self.run, self.keep, self.resumes_exactly = run, keep, resumes_exactly
        self.waiting = False  # a save that was due at a step where it would not have been exact
        self.stopped = 0  # the signal that ended training, on whichever process it came
        self.before = 0.0  # seconds that the processes before this one trained, up to the checkpoint it goes on from
        self.started = time.time()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Ask for room before the first step, and find the best checkpoint again where the stage goes on."""
        if state.best_model_checkpoint:
            best = self.run.output / Path(state.best_model_checkpoint).name
            state.best_model_checkpoint = str(best)
            if wrong := resume.fault(best):
                self.run.say(f"{best.name}, the best so far, {wrong}; the best is looked for anew")
                state.best_model_checkpoint = state.best_metric = state.best_global_step = None
        if self.run.main:
            resume.has_room(self.run.output, more["model"], args.optim, _saves(args, state), self.keep)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log with a save at an epoch's end, too; one that a signal cut short is no epoch, and nothing is looked at."""
        if self.stopped and abs((state.epoch or 0.0) - round(state.epoch or 0.0)) > _EPOCH:
            control.should_save = control.should_evaluate = False
        control.should_log = control.should_log or control.should_save

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save and stop if one of the processes was asked to; log with every save and at the end, so that the log has no gap."""
        stop = signals.pending_signal()
        if args.world_size > 1:
            everyone = torch.tensor(stop, device=args.device)
            torch.distributed.all_reduce(everyone, torch.distributed.ReduceOp.MAX)
            stop = int(everyone)
        exact = state.global_step >= state.max_steps or self.resumes_exactly(state.global_step)
        if stop and exact:
            self.stopped = stop
            control.should_save = control.should_training_stop = True
        due = control.should_save or self.waiting
        control.should_save, self.waiting = due and exact, due and not exact
        control.should_log = control.should_log or control.should_save or state.global_step >= state.max_steps

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seal what every process has written, then prune."""
        process.wait_for_all()
        if self.run.main:
            saved = self.run.output / f"checkpoint-{state.global_step}"
            manifest.write_json(saved / SECONDS, {"seconds": self.seconds()})
            resume.seal(saved)
            best = state.best_model_checkpoint
            resume.prune(self.run.output, self.keep, Path(best) if best else None)

    def seconds(self) -> float:
        """Return for how long the stage has been trained, by this process and those before it."""
        return round(self.before + time.time() - self.started, 3)


def _saves(args: TrainingArguments, state: TrainerState) -> int:
    """Return how many checkpoints a run will write."""
    if args.save_strategy == "no":
        return 0
    if args.save_strategy == "epoch":
        return max(1, int(state.num_train_epochs))
    return max(1, state.max_steps // max(1, int(state.save_steps)))

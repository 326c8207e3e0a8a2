"""Progress while a trainer is at work: one line for the person, one line of log.jsonl for each logged step."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.chain.run import Run
from pipeline.system import readable
from pipeline.training import guards

_TOKENS = "_total_train_tokens"  # of a trainer of trl: what it logs as num_tokens, which begins at 0 in each process


class Progress(TrainerCallback):
    """One line that shows loss, tokens a second and time left; one line of log.jsonl per logged step."""

    def __init__(self, run: Run, trainer: Any) -> None:
        """`trainer`: its `progress` names figures of the log that the line shows beside the loss."""
        self.run, self.log, self.trainer, self.figures = run, run.output / "log.jsonl", trainer, trainer.progress
        self.entries: list[dict[str, Any]] = []
        self.started = time.time()
        self.offset = (0, 0)  # step and tokens at the start of this process
        self.shown = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget what a killed process logged after the checkpoint that this one goes on from; warn of a warm-up without an end."""
        self.started, self.offset = time.time(), (state.global_step, state.num_input_tokens_seen)
        if warning := guards.warms_up(args, state.max_steps):
            self.run.say(warning)
        if not state.is_world_process_zero:
            return
        kept = []
        if self.log.exists():
            kept = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        self.entries = [entry for entry in kept if entry["step"] <= state.global_step]
        if self.entries and hasattr(self.trainer, _TOKENS):
            setattr(self.trainer, _TOKENS, self.entries[-1].get("num_tokens", 0))
        partial = self.log.with_suffix(".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries), encoding="utf-8")
        partial.replace(self.log)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the step's figures to the log and refresh the line."""
        logs = kwargs.get("logs", {})
        if "loss" not in logs:
            return
        entry = {"step": state.global_step, "tokens": int(state.num_input_tokens_seen), **logs}
        self.entries.append(entry)
        if not state.is_world_process_zero:
            return
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self._show(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say what validation gave."""
        found = ", ".join(f"{name.removeprefix('eval_')} {value:.3f}" for name, value in kwargs["metrics"].items())
        self.run.say(f"step {state.global_step}: validation {found}")

    def metrics(self) -> dict[str, float]:
        """Return the first, the last and the mean training loss of the whole stage, however often it was resumed."""
        steps = [0, *(entry["step"] for entry in self.entries)]
        losses = [float(entry["loss"]) for entry in self.entries]
        total = sum(loss * (step - before) for loss, before, step in zip(losses, steps, steps[1:], strict=False))
        return {"first_loss": losses[0], "last_loss": losses[-1], "mean_loss": total / steps[-1]}

    def _show(self, state: TrainerState) -> None:
        seconds = max(time.time() - self.started, 1e-9)
        steps, seen = state.global_step - self.offset[0], state.num_input_tokens_seen - self.offset[1]
        left = seconds / max(steps, 1) * (state.max_steps - state.global_step)
        last = self.entries[-1]
        more = "".join(f"{name.replace('_', ' ')} {last[name]:.3f}  " for name in self.figures if name in last)
        line = (
            f"{self.run.name:<8} step {state.global_step}/{state.max_steps}  loss {last['loss']:.3f}  {more}"
            f"{seen / seconds:,.0f} tokens/s  {int(left) // 60}:{int(left) % 60:02d} left"
        )
        if sys.stdout.isatty():
            readable.redraw(line, "" if state.global_step < state.max_steps else "\n")
        elif state.global_step >= self.shown:  # in a file: ten lines, not hundreds
            print(line, flush=True)
            self.shown = state.global_step + state.max_steps / 10

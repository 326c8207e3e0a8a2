"""What every stage does with a trainer: go on from the newest checkpoint, show progress, record, save whole."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pipeline.chain import manifest, resume
from pipeline.chain.run import Run
from pipeline.data import tokens
from pipeline.data.recipe import Rows
from pipeline.models import checkpoint
from pipeline.system import process, signals
from pipeline.system.errors import Stopped
from pipeline.training.trainer import StageTrainer

_EPOCH = 1e-6  # of an epoch, less than any step
SECONDS = "seconds.json"  # in a checkpoint: for how long it was trained
# Of every stage: quiet, a checkpoint now and then, nothing dropped from the batch.
FORCED: dict[str, Any] = {
    "remove_unused_columns": False,
    "disable_tqdm": True,
    "push_to_hub": False,
    "include_num_input_tokens_seen": "non_padding",
    "label_names": ["labels"],
    "logging_nan_inf_filter": False,  # it would hide what StageTrainer looks for
}
DEFAULTS: dict[str, Any] = {
    "save_steps": 500, "save_total_limit": 2, "logging_steps": 10, "logging_first_step": True, "gradient_checkpointing": False, "report_to": "none", "ddp_find_unused_parameters": False,
}  # fmt: skip


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


class Progress(TrainerCallback):
    """One line that shows loss, tokens a second and time left; one line of log.jsonl per logged step."""

    def __init__(self, run: Run, shown: Sequence[str] = ()) -> None:
        self.run, self.log, self.figures = run, run.output / "log.jsonl", shown
        self.entries: list[dict[str, Any]] = []
        self.started = time.time()
        self.offset = (0, 0)  # step and tokens at the start of this process
        self.shown = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget what a killed process logged after the checkpoint that this one goes on from."""
        self.started, self.offset = time.time(), (state.global_step, state.num_input_tokens_seen)
        if not state.is_world_process_zero:
            return
        kept = []
        if self.log.exists():
            kept = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        self.entries = [entry for entry in kept if entry["step"] <= state.global_step]
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
            print(f"\r{line}\x1b[K", end="" if state.global_step < state.max_steps else "\n", flush=True)
        elif state.global_step >= self.shown:  # in a file: ten lines, not hundreds
            print(line, flush=True)
            self.shown = state.global_step + state.max_steps / 10


def prepare(run: Run, rows: Rows, examples: Iterable[dict[str, Any]]) -> Any:
    """Write examples to disk, once for all processes, and count in the record what was kept and dropped.

    Returns the data set, one example a row; `examples` counts in `rows.dropped_by_encoding` what it drops.
    """
    import datasets
    from accelerate import PartialState

    path = run.output / ".data" / "train.arrow"
    with PartialState().main_process_first():
        dataset = tokens.write(examples, path) if run.main else datasets.Dataset.from_file(str(path))
    rows.truncated = +rows.truncated  # without what was counted and is none
    dropped = rows.dropped + rows.dropped_by_encoding
    kept = len(rows.kept) - rows.dropped_by_encoding.total()
    run.record["recipe"] |= {"rows": kept + dropped.total(), "kept": kept, "dropped": dict(dropped)}
    if rows.truncated:
        run.record["recipe"]["truncated"] = dict(rows.truncated)
    said = ", ".join(f"{count:,} as {name}" for name, count in rows.formats.items())
    lost = ", ".join(f"{count:,} {reason}" for reason, count in (dropped + rows.truncated).items()) or "none"
    run.say(f"{run.recipe.name}: {run.record['recipe']['kept']:,} rows{f' ({said})' if said else ''}; dropped: {lost}")
    return dataset


def _saves(args: TrainingArguments, state: TrainerState) -> int:
    """Return how many checkpoints a run will write."""
    if args.save_strategy == "no":
        return 0
    if args.save_strategy == "epoch":
        return max(1, int(state.num_train_epochs))
    return max(1, state.max_steps // max(1, int(state.save_steps)))


def decay(arguments: TrainingArguments, rows: int) -> None:
    """Give a warmup-stable-decay schedule its decay: the last 40% of the steps, unless the profile says how many.

    The library wants an absolute number, which would be wrong as soon as the data is another.
    """
    if str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)) != "warmup_stable_decay":
        return
    size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(rows / size) * arguments.num_train_epochs
    given: Any = arguments.lr_scheduler_kwargs or {}
    arguments.lr_scheduler_kwargs = {"num_decay_steps": max(1, round(0.4 * steps)), **given}


def fit(run: Run, trainer: StageTrainer, rows: Rows) -> None:
    """Train from the newest whole checkpoint on, and put what was seen and reached into the record.

    Raises Stopped after a signal, with a checkpoint saved.
    """
    progress = Progress(run, trainer.progress)
    keep = resume.kept(trainer.args)
    trainer.remove_callback(PrinterCallback)
    keeper = Keeper(run, keep, trainer.resumes_exactly)
    trainer.add_callback(keeper)
    trainer.add_callback(progress)
    trainer.origin = rows.origin
    if run.main:
        resume.sweep(run.output, run.say)
    process.wait_for_all()
    newest = resume.latest(run.output)
    if newest:
        run.record["resumed_from"] = int(newest.name.split("-")[1])
        run.say(f"goes on from {newest.name}")
        spent = newest / SECONDS
        keeper.before = float(json.loads(spent.read_text(encoding="utf-8"))["seconds"]) if spent.exists() else 0.0
        run.record["seconds_before"] = keeper.before
    run.unchanged()
    keeper.started = time.time()
    with signals.at_step_ends():
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    state = trainer.state
    if keeper.stopped:
        raise Stopped(
            keeper.stopped,
            f"{run.name}: stopped; checkpoint-{state.global_step} is saved and the same command goes on from there",
        )
    run.record |= {
        "training_seconds": keeper.seconds(), "tokens": int(state.num_input_tokens_seen), "flops": float(state.total_flos), "steps": state.global_step, "metrics": progress.metrics(),
    }  # fmt: skip


def hand_over(
    run: Run,
    trainer: Any,
    tokenizer: Any,
    sample: Mapping[str, Sequence[int]],
    save: Callable[[Any, Any, Path], None] = checkpoint.save,
) -> None:
    """Save the whole model, merged where there is an adapter, which is kept beside it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not run.main:
        return
    if hasattr(model, "merge_and_unload"):
        config = model.peft_config["default"]
        if not isinstance(config.target_modules, str):  # else a soft prompt, which is nothing without its tokens
            config.base_model_name_or_path = ".."  # the adapter's base is the parent; no path of this machine leaves
            config.target_modules = sorted(config.target_modules)  # a set is written in another order by each process
            model.save_pretrained(run.result / "adapter", save_embedding_layers=False)
            (run.result / "adapter" / "README.md").unlink(missing_ok=True)
        model, moved = checkpoint.merge(model, sample)
        run.record["merge_error"] = moved
    save(model, tokenizer, run.result)
    (run.output / "README.md").unlink(missing_ok=True)  # trl's card of a checkpoint, without base or figures

"""What every stage does with a trainer: resume from the newest checkpoint, show progress, record, save the whole model."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pipeline.chain import directory, resume
from pipeline.chain.run import Run
from pipeline.data import doubts, mixture, shards, token_tables, types
from pipeline.data.ranges import told
from pipeline.data.recipe import Rows
from pipeline.data.rows import length_for
from pipeline.models import checkpoint, processors
from pipeline.system import cache, hashes, imports, process, signals
from pipeline.system.errors import Stopped, UserError, WorldError
from pipeline.system.words import counted
from pipeline.training import adapter, attention, first_step, frozen, guards, outcome, parents, rates, room, sharded, tracking
from pipeline.training.keeper import SECONDS, Keeper
from pipeline.training.progress import Progress
from pipeline.training.streamed import Positions, Streamed
from pipeline.training.trainer import StageTrainer, refusals

_FIRST = 1000  # rows of a stream that are looked at before it is read
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


def prepare(
    run: Run,
    rows: Rows,
    examples: Iterable[dict[str, Any]] | shards.Encode,
    tokenizer: Any = None,
    *settings: Any,
    by_part: bool = True,
) -> Any:
    """Write examples to disk, once for all processes, and count in the record what was kept and dropped.

    `examples`: all of them, or what makes them from a part of the rows, so that they are written a part at a time (with
    `by_part` off: from all rows). These are kept and used again where `tokenizer` and `settings` (JSON values) are all that
    decides them besides the rows.
    Returns the data set, one example a row; `examples` counts in `dropped_by_encoding` of the rows what it drops.
    """
    from accelerate import PartialState

    if rows.stream and callable(examples):
        return _sampled(run, rows, examples)
    identity = _identity(run, rows, tokenizer, settings) if callable(examples) else ""
    folder = run.output / ".data"
    if identity and callable(examples):
        dataset = shards.encoded(rows, examples, identity, folder, run.say, by_part)
    else:
        with PartialState().main_process_first():
            if run.main:
                shards.write(rows, examples, folder, run.say, by_part)
            dataset = shards.opened(rows, folder)
    rows.truncated = +rows.truncated  # without what was counted and is none
    dropped = rows.dropped + rows.dropped_by_encoding
    kept = len(rows.kept) - rows.dropped_by_encoding.total()
    run.record["recipe"] |= {"rows": kept + dropped.total(), "kept": kept, "dropped": dict(dropped)}
    if rows.truncated:
        run.record["recipe"]["truncated"] = dict(rows.truncated)
    said = ", ".join(f"{count:,} as {name}" for name, count in rows.formats.items())
    lost = ", ".join(f"{count:,} {reason}" for reason, count in (dropped + rows.truncated).items()) or "none"
    for note in (*rows.notes, *_doubts(run, rows)):
        run.say(note)
    held_out = f", {rows.held_out:,} held out" if rows.held_out else ""
    run.say(f"{run.recipe.name}: {counted(kept, 'row')}{f' ({said})' if said else ''}{held_out}; dropped: {lost}")
    if rows.parts:
        dataset, run.record["recipe"]["mixture"] = mixture.mixed(dataset, rows.parts, run.seed)
        for line in mixture.told(run.record["recipe"]):
            run.say(line)
    if dropped.total() > kept:
        run.say(_mostly_dropped(rows, kept, dropped.total()))
    return dataset


def _sampled(run: Run, rows: Rows, encode: shards.Encode) -> Any:
    """Return the first examples of a stream's sample, and tell what is in it; the record is filled when the stream was read."""
    said = ", ".join(f"{count:,} as {name}" for name, count in rows.formats.items())
    lost = ", ".join(f"{count:,} {reason}" for reason, count in rows.dropped.items()) or "none"
    for note in (*rows.notes, *_doubts(run, rows)):
        run.say(note)
    run.say(
        f"{run.recipe.name}: streamed; of a sample of {counted(len(rows.kept) + rows.held_out, 'row')} ({said}) {rows.held_out:,} are held out; dropped: {lost}"
    )
    return token_tables.table(encode(Rows(rows.kept[:_FIRST], name=rows.name)))


def streamed(run: Run, rows: Rows, encode: shards.Encode, packed: int) -> Streamed:
    """Return the rows of a whole run, read while it goes on; `packed`: tokens of a row that holds several documents, or 0."""
    assert rows.stream
    return Streamed(rows.stream, encode, packed, run.library_arguments(**DEFAULTS | run.arguments | FORCED))


def _mostly_dropped(rows: Rows, kept: int, dropped: int) -> str:
    """Return the warning that most rows are dropped, with the length that would keep nearly all of them."""
    told = f"most rows are dropped: {dropped:,} of {kept + dropped:,}"
    if not rows.too_long:
        return told
    length = length_for(0.99, kept, rows.too_long)
    return f"{told}; max_length {length:,} would keep 99% of the {kept + rows.too_long.total():,} that only length decides on"


def _doubts(run: Run, rows: Rows) -> list[str]:
    """Return what the rows can hardly mean, which is kept by their digest; UserError for what they can't."""
    reads = run.signature.reads
    if not reads or run.quiet:
        return []
    if not rows.identity:
        return doubts.of(rows.kept, types.load(reads))

    def make(folder: Path) -> None:
        (folder / "doubts.json").write_text(json.dumps(doubts.of(rows.kept, types.load(reads))), encoding="utf-8")

    made = cache.made(f"doubts-{cache.key(rows.identity, reads)}", make) / "doubts.json"
    return list(json.loads(made.read_text(encoding="utf-8")))


def _identity(run: Run, rows: Rows, tokenizer: Any, settings: Sequence[Any]) -> str:
    """Return the digest of all that decides the examples; empty where that is not known."""
    if not rows.identity or tokenizer is None or not (encoder := processors.identity(tokenizer)):
        return ""
    script = hashes.sha256(Path(str(sys.modules[type(run.stage).__module__].__file__)))
    return cache.key(rows.identity, encoder, script, *settings)


def rows_of_a_step(arguments: TrainingArguments) -> int:
    """Return how many rows a step of the optimizer reads, on all processes."""
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)


def passes(arguments: TrainingArguments, rows: int) -> float:
    """Return how often a run reads each of so many rows."""
    if arguments.max_steps > 0:
        return arguments.max_steps * rows_of_a_step(arguments) / rows
    return float(arguments.num_train_epochs)


def steps(arguments: TrainingArguments, rows: int) -> int:
    """Return how many steps of the optimizer a run over so many rows takes."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    return math.ceil(math.ceil(rows / rows_of_a_step(arguments)) * arguments.num_train_epochs)


def decay(arguments: TrainingArguments, rows: int) -> None:
    """Give a warmup-stable-decay schedule its decay: the last 40% of the steps, unless the profile says how many.

    The library wants an absolute number, which would be wrong as soon as the data is another.
    """
    if str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)) != "warmup_stable_decay":
        return
    given: Any = arguments.lr_scheduler_kwargs or {}
    arguments.lr_scheduler_kwargs = {"num_decay_steps": max(1, round(0.4 * steps(arguments, rows))), **given}


def _check(run: Run, trainer: StageTrainer) -> None:
    """Raise UserError, or warn, of what model, rows and arguments tell before the first step."""
    examples: Any = trainer.train_dataset
    model, tokenizer = trainer.model, trainer.processing_class
    count = len(examples) if hasattr(examples, "__len__") else 0
    guards.adapts(model, getattr(run.options, "target_modules", ""))
    guards.fills(trainer)
    if said := room.missing(trainer, lora=getattr(run.options, "method", "") == "full"):
        raise UserError(said)
    from_parent = run.record.get("starts_from") == "parent"
    warnings = [guards.accumulates(trainer.args, count)]
    if from_parent and not frozen.in_four_bits(model):
        guards.broken(model)
        warnings += [guards.empty(model), guards.half_filled(model), guards.copied(model), guards.own_code(model)]
    _refuse(run, _rates(trainer, steps(trainer.args, max(count, 1))))
    attention.isolates(trainer, model)
    reads_rows = from_parent and isinstance(trainer.train_dataset, (Dataset, Streamed))
    if reads_rows:
        warnings.append(guards.reads(examples, tokenizer))
    for warning in filter(None, warnings):
        run.say(warning)
    if reads_rows and run.record.get("family") == "causal":
        with attention.computing(trainer, model):
            parents.known(run, model, examples, tokenizer)
    elif reads_rows:
        parents.known_by_itself(run, examples, tokenizer)
    _refuse(run, first_step.fault(trainer))


def _rates(trainer: StageTrainer, count: int) -> str:
    """Return in words what the learning rates of so many steps can't do, or ""."""
    with refusals([trainer.args]):
        said = rates.fault(trainer.model, trainer.args, *rates.scheduled(trainer.args, count))
    return ": ".join(filter(None, [said and guards.warms_up(trainer.args, count), said]))


def _refuse(run: Run, said: str) -> None:
    """Raise UserError of what a run can't do; a trial of a few steps, which max_steps says, is only warned."""
    if said and run.arguments.get("max_steps", -1) <= 0:
        raise UserError(said)
    if said:
        run.say(said)


def fit(run: Run, trainer: StageTrainer, rows: Rows) -> None:
    """Train from the newest whole checkpoint on, and put what was seen and reached into the record.

    Raises Stopped after a signal, with a checkpoint saved.
    """
    progress = Progress(run, trainer)
    keep = resume.kept(trainer.args)
    trainer.remove_callback(PrinterCallback)
    stream = trainer.train_dataset if isinstance(trainer.train_dataset, Streamed) else None
    if stream:
        trainer.add_callback(Positions(trainer))  # before the one that seals
    keeper = Keeper(run, keep, trainer.resumes_exactly)
    trainer.add_callback(keeper)
    trainer.add_callback(progress)
    trainer.origin = told if stream else rows.origin
    if run.main:
        resume.sweep(run.output, run.say)
    process.wait_for_all()
    newest = resume.latest(run.output)
    trainer.began = guards.weights(trainer.model) if run.main else {}
    if newest:
        run.record["resumed_from"] = int(newest.name.split("-")[1])
        run.say(f"goes on from {newest.name}")
        spent = newest / SECONDS
        keeper.before = float(json.loads(spent.read_text(encoding="utf-8"))["seconds"]) if spent.exists() else 0.0
        run.record["seconds_before"] = keeper.before
        if stream:
            trainer.position = stream.resume(newest)
    run.unchanged()
    tracking.follow(run, trainer)
    _check(run, trainer)
    before = outcome.losses(trainer)
    imports.settle()
    trainer.outlined = sharded.outline(trainer.model) if sharded.is_sharded(trainer) else None
    keeper.started = time.time()
    with signals.at_step_ends():
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    state = trainer.state
    if keeper.stopped:
        raise Stopped(
            keeper.stopped,
            f"{run.name}: stopped; checkpoint-{state.global_step} is saved and the same command goes on from there",
        )
    if stream:
        run.unchanged()
        run.record["recipe"] |= stream.record(trainer.position)
        for line in mixture.told(run.record["recipe"]):
            run.say(line)
    after = outcome.losses(trainer)
    trainer.worse = (
        outcome.worse(before, after) or outcome.less_rewarded(progress.entries) or outcome.untaught(progress.entries)
    )
    trainer.still = outcome.still(before, after)
    if unseen := outcome.unseen(trainer):
        run.say(unseen)
    run.record |= {
        "training_seconds": keeper.seconds(), "tokens": int(state.num_input_tokens_seen), "flops": float(state.total_flos), "steps": state.global_step, "metrics": progress.metrics(),
    }  # fmt: skip


def _on_the_parent(run: Run, model: Any, sample: Mapping[str, Sequence[int]]) -> Any:
    """Return the adapter that was trained on 4-bit weights on the parent's own, and tell by how much they differ."""
    from pipeline.training.chat import open_parent

    quiet = dataclasses.replace(run, quiet=True)
    whole = frozen.on_the_parent(model, open_parent(quiet, whole=True).model)
    moved = checkpoint.apart(model, whole, sample)
    run.record["quantization_error"] = moved
    run.say(f"merges into the parent's own weights; those in 4 bits gave logits that differ by {moved:.1%} of the largest")
    return whole


def hand_over(
    run: Run,
    trainer: Any,
    tokenizer: Any,
    sample: Mapping[str, Sequence[int]],
    save: Callable[[Any, Any, Path], None] = checkpoint.save,
) -> None:
    """Save the whole model, merged where there is an adapter, which is kept beside it."""
    model = (
        sharded.whole(trainer, trainer.outlined)
        if trainer.outlined
        else trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    )
    if not run.main:
        return
    attention.plain(model)
    if frozen.in_four_bits(model):
        model = _on_the_parent(run, model, sample)
    if trainer.halved:
        frozen.restore(model.to("cpu"), trainer.halved)  # where there is room for all of them
    if hasattr(model, "merge_and_unload"):
        config = model.peft_config["default"]
        if not isinstance(config.target_modules, str):  # else a soft prompt, which is nothing without its tokens
            config.base_model_name_or_path = ".."  # the adapter's base is the parent; no path of this machine leaves
            config.target_modules = sorted(config.target_modules)  # a set is written in another order by each process
            with adapter.without_card(model):
                model.save_pretrained(run.result / "adapter", save_embedding_layers=False)
        model, moved = checkpoint.merge(model, sample)
        run.record["merge_error"] = moved
    if trainer.began and (trainer.still or guards.weights(model) == trainer.began):
        said = f"{trainer.state.global_step:,} steps moved no weight by more than rounding; learning_rate is {trainer.args.learning_rate:g}"
        if trainer.args.max_steps <= 0:
            raise WorldError(f"{run.name}: {said}; nothing is handed on")
        run.say(said)
    save(model, tokenizer, run.result)
    if trainer.worse:
        if run.arguments.get("max_steps", -1) <= 0:
            kept = directory.set_result_aside(run)
            raise WorldError(
                f"{run.name}: {trainer.worse}; nothing is handed on, and the model is kept in {kept}. Lower learning_rate, "
                "or look at the rows"
            )
        run.say(trainer.worse)
    (run.output / "README.md").unlink(missing_ok=True)  # trl's card of a checkpoint, without base or figures

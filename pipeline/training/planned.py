"""What a node's training will take, measured by its own trainer: `planned` replaces `train` while a plan is made.

The first step is followed on two rows and on three, as long as the longest that the run will read, and what the whole batch
holds is told from them (`footprint.py`). Then a few steps are taken as they are, and timed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import TrainerCallback

from pipeline.data.batches import IDS, tokens_read
from pipeline.system import hardware
from pipeline.system.errors import WorldError
from pipeline.system.memory import Peak
from pipeline.training import frozen, loop, room
from pipeline.training.footprint import Step, extrapolated, followed
from pipeline.training.trainer import StageTrainer, take_rows

_ROWS = 2, 3  # of the two steps that are followed; one row alone may take other operations than several
_SAMPLES = 16  # batches that are looked at for their length, spread over the run
_PART = 10_000  # rows whose lengths are read at once
_WARM = 3  # steps whose time does not count
_LARGEST = 2  # steps on the longest rows, of which the second finds the optimizer's state
_HEAP = {"cpu": 1.4}  # times the tensors: what a process may hold, since the C library keeps what was freed
_ALLOCATOR = 1.1  # the same of an accelerator


@dataclasses.dataclass(frozen=True)
class Request:
    """What a plan requests of a node's trainer."""

    out: Path  # the answer, JSON
    max_steps: int  # of the run itself; -1: its epochs
    steps: int  # that are timed; 0: one is taken, so that there is something to hand on
    rounds: int  # of which steps are a multiple; where steps is 0, so many are taken
    seconds: float  # after which no further one is timed
    room: int  # bytes of memory that may be filled
    peak: Peak | hardware.DevicePeak  # of this process


class _Enough(Exception):
    """The step was followed and can't be taken here."""


def planned(trainer: Any, request: Request, train: Callable[[Any], Any]) -> None:
    """Find out what a trainer's run takes, write it, and train for a few steps by its own `train`."""
    arguments = trainer.args
    if arguments.max_steps in (request.steps, request.rounds):
        arguments.max_steps = request.max_steps
    total = loop.steps(arguments, len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else 1)
    arguments.max_steps = max(request.rounds, min(total, request.steps))
    probe = _Probe(trainer, request, total)
    clock = _Clock(request.seconds)
    trainer.add_callback(clock)
    step, trainer.training_step = trainer.training_step, probe.first
    probe.step = step
    try:
        train(trainer)
    except _Enough:
        request.out.write_text(json.dumps(probe.found), encoding="utf-8")
        raise WorldError("its step would not fit into the memory of this machine, so it hands nothing on") from None
    finally:
        trainer.training_step = step
    found = probe.found
    if request.steps and clock.times:
        found["memory"]["optimizer"] = _bytes(
            one for state in trainer.optimizer.state.values() for one in state.values() if isinstance(one, torch.Tensor)
        )
        found["measured"] = {
            "steps": len(clock.times), "seconds_a_step": _mean(clock.times), "processor_seconds_a_step": _mean(clock.processor),
            "tokens_a_step": trainer.state.num_input_tokens_seen / trainer.state.global_step,
        }  # fmt: skip
    request.out.write_text(json.dumps(found), encoding="utf-8")


def _mean(times: Sequence[float]) -> float:
    """Return the mean of the times of steps, without those that warm up or are taken on the longest rows."""
    return statistics.fmean(times[_WARM:] or times[-1:])


class _Clock(TrainerCallback):
    """Take the time of each step, from the end of the one before."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.times, self.processor = seconds, list[float](), list[float]()
        self.began = self.last = self.used = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin with the first step, after which each begins where the one before ended."""
        if not self.began:
            self.began = self.last = time.monotonic()
            self.used = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note a step's time, and stop when there was enough of it."""
        now = time.monotonic()
        self.times.append(now - self.last)
        self.processor.append(time.process_time() - self.used)
        self.last, self.used = now, time.process_time()
        if now - self.began > self.seconds and len(self.times) > _WARM:
            control.should_training_stop = True


class _Rows(NamedTuple):
    """Numbers of the rows that a plan is told from."""

    longest: Any  # in ids
    fullest: Any  # that has the most beside its ids, such as pictures
    unlike: Any = None  # whose share of that differs most from that of the longest; None where no row has any


class _Shape(NamedTuple):
    """What the operations of a batch follow."""

    ids: float  # with padding
    squares: float  # sum of the rows' squared lengths
    longest: float
    others: float  # numbers that stand beside the ids


class _Probe:
    """The first step of a run, followed."""

    step: Callable[..., Any]  # the trainer's own

    def __init__(self, trainer: Any, request: Request, total: int) -> None:
        self.trainer, self.request, self.total = trainer, request, total
        self.found: dict[str, Any] = {}
        self.rows = _Rows(0, 0)
        self.sampled: list[Any] = []  # batches spread over the run
        self.left = _LARGEST * trainer.args.gradient_accumulation_steps
        self.clock = time.monotonic()

    def first(self, model: Any, inputs: Any, items: Any = None) -> Any:
        """Follow the step in place of the first one; then let the first two steps be taken on the longest rows."""
        trainer = self.trainer
        if trainer.samples:
            self._note(model, *self._as_it_is(model, inputs, items))
        else:
            self._note(model, *self._by_rows(model, trainer.args.per_device_train_batch_size))
        if self.found["held"] * _HEAP.get(trainer.args.device.type, _ALLOCATOR) > self.request.room:
            raise _Enough
        self.request.peak.forget()
        if trainer.samples or not self.request.steps:
            trainer.training_step = self.step
            return self.step(model, inputs, items)
        trainer.training_step = self.largest
        return self.largest(model, inputs, items)

    def largest(self, model: Any, inputs: Any, items: Any = None) -> Any:
        """Take a step on rows as long as the longest, in place of others: the peak of the run comes with them."""
        self.left -= 1
        if not self.left:
            self.trainer.training_step = self.step
        batch, _ = self._batch(self.trainer.args.per_device_train_batch_size)
        return self.step(model, batch, self.trainer._get_num_items_in_batch([batch], self.trainer.args.device))

    def _as_it_is(self, model: Any, inputs: Any, items: Any) -> tuple[Step, float, float]:
        """Follow a step whose rows are sampled while it is taken."""
        found = self._followed(model, inputs, items)
        return found, float(found.linear), float(found.attention)

    def _by_rows(self, model: Any, batch: int) -> tuple[Step, float, float]:
        """Follow the step on few rows; return that of the whole batch and the mean operations of a batch."""
        trainer = self.trainer
        rows = _order(trainer, self.total)
        self.rows = _extremes(trainer.train_dataset, rows)
        if trainer.args.gradient_accumulation_steps > 1:  # gradients are there when the largest step is taken
            self._taken(model, 1)
        if batch <= max(_ROWS):
            found, shape = self._taken(model, batch)
            whole = found
        else:
            few, _ = self._taken(model, _ROWS[0])
            found, shape = self._taken(model, _ROWS[1])
            whole = extrapolated(few, found, (batch - _ROWS[0]) / (_ROWS[1] - _ROWS[0]))
            self.found["smaller"] = {}
            while (half := batch // 2) >= 1 and batch > 1:
                batch = half
                one = extrapolated(few, found, (batch - _ROWS[0]) / (_ROWS[1] - _ROWS[0]))
                self.found["smaller"][batch] = one.peak
        taken = [(found, shape)]
        if self.rows.unlike is not None:
            taken.append(self._taken(model, 2, self.rows.unlike))
        model.zero_grad(set_to_none=True)
        self.sampled = _sampled(trainer, rows)
        shapes = [_shape(one) for one in self.sampled]
        mean = _Shape(*(statistics.fmean(one[at] for one in shapes) for at in range(len(shape))))
        self.found["longest"] = shape.longest
        linear = _scaled([(one.linear, at.ids, at.others) for one, at in taken], mean.ids, mean.others)
        attention = _scaled([(one.attention, at.squares, at.others) for one, at in taken], mean.squares, mean.others)
        return whole, linear, attention

    def _batch(self, count: int, first: Any = None) -> tuple[Any, _Shape]:
        """Return a batch as long as the longest row, in which each other has the most beside its ids. `first`: in place of the longest."""
        rows = [self.rows.longest if first is None else first] + [self.rows.fullest] * (count - 1)
        inputs = self.trainer.data_collator([self.trainer.train_dataset[int(row)] for row in rows])
        return inputs, _shape(inputs)

    def _taken(self, model: Any, count: int, first: Any = None) -> tuple[Step, _Shape]:
        inputs, shape = self._batch(count, first)
        items = self.trainer._get_num_items_in_batch([inputs], self.trainer.args.device)
        if self.trainer.args.gradient_accumulation_steps == 1:
            model.zero_grad(set_to_none=True)
        return self._followed(model, inputs, items), shape

    def _followed(self, model: Any, inputs: Any, items: Any) -> Step:
        vocabulary = getattr(self.trainer.model.config.get_text_config(), "vocab_size", 0)
        found = followed(lambda: self.step(model, inputs, items), vocabulary)
        self.trainer._seen.clear()
        return found

    def _note(self, model: Any, whole: Step, linear: float, attention: float) -> None:
        """Write down parameters, memory by part and operations."""
        trainer, arguments = self.trainer, self.trainer.args
        parameters = list(trainer.model.parameters())
        trained = [one for one in parameters if one.requires_grad]
        accumulated = _bytes(trained) if arguments.gradient_accumulation_steps > 1 else 0
        optimizer = str(getattr(arguments.optim, "value", arguments.optim))
        weights = _bytes([*parameters, *trainer.model.buffers()])
        others = _bytes(_others(trainer, parameters))
        state = room.needed(trainer.model, optimizer)
        step = max(whole.peak + accumulated, _bytes(trained))
        gradients = (accumulated or whole.kept) if step > _bytes(trained) else step
        logits = min(whole.logits, step - gradients)
        batches = arguments.gradient_accumulation_steps * arguments.world_size
        rest = weights + others + state
        smaller = {rows: rest + _bytes(trained) + peak for rows, peak in self.found.pop("smaller", {}).items()}
        self.found |= {
            "trained": sum(one.numel() for one in trained), "frozen": sum(one.numel() for one in parameters if not one.requires_grad),
            "steps": self.total, "batch": arguments.per_device_train_batch_size, "accumulation": arguments.gradient_accumulation_steps,
            "roundable": frozen.numbers(trainer.model), "weight": 2 if trainer.halved else 4, "processes": arguments.world_size, "optimizer": optimizer,
            "flops": {"linear": linear * batches * self.total, "attention": attention * batches * self.total},
            "memory": {
                "weights": weights, "gradients": gradients, "optimizer": state, "activations": step - gradients - logits, "logits": logits,
                "others": others,
            },
            "held": rest + step, "smaller": smaller, "samples": trainer.samples, "seconds_to_begin": time.monotonic() - self.clock,
            "device": str(arguments.device.type), "peak_memory": hardware.peak_memory(),
        }  # fmt: skip
        if not trainer.samples:
            pad = int(getattr(trainer.processing_class, "pad_token_id", None) or 0)
            tokens = [tokens_read(one, pad) for one in self.sampled]
            self.found["tokens"] = statistics.fmean(tokens) * batches * self.total


def _others(trainer: Any, ours: Sequence[Any]) -> list[Any]:
    """Return the parameters of the other models that a trainer holds: a reference, a teacher, a reward model."""
    known, found = {id(one) for one in ours}, []
    held = [one for value in vars(trainer).values() for one in (value if isinstance(value, (list, tuple)) else [value])]
    for model in held:
        if not isinstance(model, torch.nn.Module):
            continue
        for one in model.parameters():
            if id(one) not in known:
                known.add(id(one))
                found.append(one)
    return found


def _bytes(tensors: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def _order(trainer: Any, steps: int) -> list[Any]:
    """Return the numbers of the rows that a run reads in its first epoch, in their order."""
    first = steps * loop.rows_of_a_step(trainer.args)
    if trainer.samples or not hasattr(trainer.train_dataset, "column_names"):
        return list(range(min(first, len(trainer.train_dataset), 256)))
    return list(trainer._get_train_sampler())[:first]


def _extremes(dataset: Any, rows: Sequence[int]) -> _Rows:
    """Return which of the rows a plan is told from."""
    if not hasattr(dataset, "column_names"):
        ids = [sum(len(value) for key, value in dataset[row].items() if key.endswith("ids")) for row in rows]
        return _Rows(*[rows[int(np.argmax(ids))]] * 2)
    kinds = dataset.features.arrow_schema
    columns = (
        [one.name for one in kinds if one.name.endswith("ids")],
        [one.name for one in kinds if pa.types.is_binary(one.type)],
    )
    ids, beside = (_lengths(dataset, names)[np.asarray(rows)] for names in columns)
    longest, fullest, share = int(np.argmax(ids)), int(np.argmax(beside)), beside / np.maximum(ids, 1)
    if not beside.any():
        return _Rows(rows[longest], rows[longest])
    unlike = int(np.argmax(abs(share - share[longest])))
    return _Rows(rows[longest], rows[fullest], rows[unlike] if columns[0] else None)


def _lengths(dataset: Any, columns: Sequence[str]) -> np.ndarray:
    """Return how many ids, or bytes, each row of a data set has in columns."""
    total = np.zeros(len(dataset), np.int64)
    arrow = dataset.select_columns(columns).with_format("arrow")
    for start in range(0, len(dataset), _PART):
        table = arrow[start : start + _PART]
        for name in columns:
            measure = pc.binary_length if pa.types.is_binary(table[name].type) else pc.list_value_length
            total[start : start + _PART] += measure(table[name]).to_numpy()
    return total


def _sampled(trainer: Any, rows: Sequence[int]) -> list[Any]:
    """Return batches spread over the run."""
    size = trainer.args.per_device_train_batch_size
    starts = range(0, max(1, len(rows) - size + 1), size)
    found = []
    for start in starts[:: math.ceil(len(starts) / _SAMPLES)]:
        batch = trainer.data_collator([trainer.train_dataset[int(row)] for row in rows[start : start + size]])
        take_rows(batch)
        found.append(batch)
    return found


def _shape(batch: Any) -> _Shape:
    """Return the sizes of a batch with its padding."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    columns = [value for key, value in tensors.items() if key.endswith(IDS) and value.dim() > 1]
    if not columns:
        columns = [next(value for value in tensors.values() if value.dim())]
    return _Shape(
        sum(one.numel() for one in columns), sum(one.numel() * one.shape[-1] for one in columns),
        max(one.shape[-1] for one in columns), sum(one.numel() for one in tensors.values() if one.dim() > 1 and one.is_floating_point()),
    )  # fmt: skip


def _scaled(taken: Sequence[tuple[float, float, float]], size: float, others: float) -> float:
    """Return the operations of a batch, of those of one or two, each with its size and the numbers that it has beside its ids.

    They follow both where two batches tell them apart, else the size alone.
    """
    count, its_size, _ = taken[0]
    sizes = np.array([one[1:] for one in taken], float)
    if len(taken) == 1 or np.linalg.matrix_rank(sizes / sizes.max(0).clip(1), tol=1e-2) < 2:
        return count / its_size * size
    rates = np.linalg.solve(sizes, [one[0] for one in taken])
    return float(rates @ [size, others])


def stands_in(request: Request) -> None:
    """Let every trainer of this process plan in place of training; for a process that ends after it."""

    def train(trainer: Any, **_: Any) -> None:
        planned(trainer, request, lambda one: super(StageTrainer, one).train())

    setattr(StageTrainer, "train", train)  # noqa: B010

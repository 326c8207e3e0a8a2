"""The Trainer of every stage: it stops at a loss that is not finite, names its rows, and takes no step too many."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer

from pipeline.data import negatives
from pipeline.data.batches import IDS, prefixes, tokens_read
from pipeline.models import vision, vision_language
from pipeline.system.config import named_in
from pipeline.system.errors import UserError
from pipeline.system.optimizers import MUON
from pipeline.training import adapter, frozen, muon, sharded
from pipeline.training.order import permuted
from pipeline.training.streamed import POSITION, Streamed

ROW = "row"  # the column that says which row of the recipe a training row was made from
_LIBRARIES = ("transformers", "trl", "peft")
_SHOWN = 100  # rows that are named


def positions_read(model: Any, batch: Mapping[str, Any], pad_id: int) -> int:
    """Count what a model reads of a batch: its tokens, padding left out; of pictures their patches, too; else every number."""
    if vision.pictured(batch):
        return vision_language.patches_beside(model.config, batch) + tokens_read(batch, pad_id)
    if prefixes(batch):
        return tokens_read(batch, pad_id)
    read = batch.get(model.main_input_name)
    return 0 if read is None else int(read.numel())


class Traced:
    """A collator that lets the numbers of the rows travel beside the batch, under the key `row`.

    A batch that stays a list of rows, as a trainer that samples wants it, keeps the number in each row.
    """

    def __init__(self, collator: Callable[[list[Any]], Any]) -> None:
        self.collator = collator

    def begin(self, epoch: int) -> None:
        """Let a collator that draws anew in each epoch know which one it is."""
        if hasattr(self.collator, "epoch"):
            self.collator.epoch = epoch

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        """Collate rows; a packed row carries the numbers of all that are in it."""
        if torch.utils.data.get_worker_info():  # SIGTERM to the whole group: a worker serves until its step is saved
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        numbers: list[Any] = []
        for row in rows:
            numbers += row[ROW] if isinstance(row[ROW], list) else [row[ROW]]
        batch = self.collator([{key: value for key, value in row.items() if key not in (ROW, POSITION)} for row in rows])
        if isinstance(batch, list):
            return [item | {ROW: row[ROW]} for item, row in zip(batch, rows, strict=True)]
        batch[ROW] = numbers
        return batch | {POSITION: rows[-1][POSITION]} if POSITION in rows[-1] else batch


def take_rows(batch: Any) -> list[Any]:
    """Return the numbers of the rows in a batch, of a stream where they stand, and take them out of it."""
    if isinstance(batch, list):
        return [item.pop(ROW) for item in batch]
    batch.pop(POSITION, None)
    return list(batch.pop(ROW, []))


@contextlib.contextmanager
def refusals(given: Sequence[Any], within: bool = False) -> Iterator[None]:
    """Raise UserError, naming the keys, for what a library says of settings that only it looks at.

    `within`: only what is raised within one of the libraries whose settings these are.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UserError:
        raise
    except (ValueError, RuntimeError, ImportError, TypeError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if within and str(frame.f_globals["__name__"]).partition(".")[0] not in _LIBRARIES:
            raise
        line = " ".join(str(error).split())
        told = {key: value for settings in given for key, value in vars(settings).items() if value}
        raise UserError(f"the library refuses to train with these settings: {line}{named_in(line, told)}") from None


@contextlib.contextmanager
def _stays_in_training(model: Any) -> Iterator[None]:
    """Keep a model that is training from being told so again: the Trainer does at each step, and hundreds of modules pass it on."""

    def train(mode: bool = True) -> Any:
        return model if mode and model.training else type(model).train(model, mode)

    model.train = train
    try:
        yield
    finally:
        del model.train


class StageTrainer(Trainer):
    """A Trainer that looks at every loss and at the gradient's norm before it lets the optimizer move."""

    origin: Callable[[Any], str] = str  # of a row's number, for people
    position = ""  # behind the last row that was trained on, where the rows are a stream
    began: Mapping[str, int] = {}
    outlined: Any = None  # of a sharded model: what it is without its weights
    worse = ""  # in words, what is worse after training than before it
    _asked = False  # whether a batch went through the library's loss, which is the last to look at some settings
    _operations: int | None = None  # of a token
    halved: Mapping[str, torch.Tensor] = {}  # frozen layers that are held in bf16 → their weights, on the host
    still = False  # whether the loss of the same rows is the same after training as before it
    samples = False  # whether it makes its rows while it trains, so that the same can't be measured before and after
    progress: Sequence[str] = ()  # figures of its log that the line of progress shows beside the loss

    def loss_of(self, batch: Mapping[str, Any]) -> Any:
        """Return the loss of a batch under the model as it is, with its graph where gradients are on."""
        model: Any = self.model
        with refusals([self.args], within=True):
            return self.compute_loss(model, dict(batch))

    def create_model_card(self, *arguments: Any, **named: Any) -> None:
        """Write none: the card of a node is written from its record, when it is pushed."""

    def resumes_exactly(self, step: int) -> bool:
        """Say whether a checkpoint of this step resumes to the same weights; elsewhere none is saved and no stop is taken."""
        return True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        with refusals([one for one in (*arguments, *named.values()) if dataclasses.is_dataclass(one)]):
            super().__init__(*arguments, **named)
        asked = self.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
        if asked and "FSDP" not in str(self.accelerator.distributed_type):
            raise UserError(
                f"fsdp: is asked for, by the profile or by accelerate's configuration, but this launch trains as {self.accelerator.distributed_type.value}, "
                "with the whole model in each process; take it out, or launch on GPUs"
            )
        if sharded.by_zero3(self) and (hasattr(self.model, "peft_config") or hasattr(self, "ref_model")):
            raise UserError(
                "ZeRO-3 can't divide a model with an adapter or beside a reference, since trl reads its embeddings before and "
                "after that; launch with stages/launch/fsdp.yaml or zero2.yaml"
            )
        if self.args.label_smoothing_factor:
            raise UserError("label_smoothing_factor: this loss does not read it; leave it out")
        if frozen.in_four_bits(self.model):
            if sharded.is_sharded(self) or self.args.deepspeed:
                raise UserError(
                    "load_in_4bit: true: 4-bit weights are not divided among processes here; launch with stages/launch/ddp.yaml"
                )
            frozen.masters(self.model)
        self.data_collator: Traced = Traced(self.data_collator)
        self._seen: list[tuple[torch.Tensor, list[Any]]] = []  # losses and rows since the last step of the optimizer

    def _prepare_for_training(self, *arguments: Any, **named: Any) -> Any:
        """Make optimizer and schedule, and compile the model where that is asked for: the last that settings can be wrong for."""
        if self.args.bf16 and not sharded.is_sharded(self) and not self.samples:  # answers are sampled without autocast
            if frozen.can_be_halved(self.model):
                self.halved = self.halved or frozen.halve(self.model)
            if isinstance(beside := getattr(self, "ref_model", None), torch.nn.Module):
                frozen.halve(beside)
        with refusals([self.args]), sharded.embeddings_at_root(self):
            return super()._prepare_for_training(*arguments, **named)

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the library's optimizer, or Muon, as a factory, which is how the Trainer takes one that tells parameters apart."""
        if self.args.optim == MUON:
            self.optimizer_cls_and_kwargs = self._muon(self.model if model is None else model)
        return super().create_optimizer(model)

    def _muon(self, model: Any) -> tuple[Any, dict[str, Any]]:
        if sharded.is_sharded(self) or self.args.deepspeed or hasattr(model, "peft_config"):
            raise UserError(
                "optim: muon: turns whole matrices; an adapter's are of low rank, and FSDP and DeepSpeed hold parts of them: train with "
                "method: full and stages/launch/ddp.yaml, or leave it out"
            )
        args, decayed = self.args, self.get_decay_parameter_names(model)
        adam = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        return lambda: muon.build, {"decayed": decayed, "weight_decay": args.weight_decay} | adam

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the rows of a stream in order, since it is shuffled already; of other data as the Trainer does."""
        if isinstance(self.train_dataset, Streamed):
            return torch.utils.data.SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's, whose order takes less memory."""
        return permuted(super().get_train_dataloader())

    def _save(self, *arguments: Any, **named: Any) -> None:
        """Save a checkpoint as the Trainer does, its tensors by the names that the model has for them.

        It reads a checkpoint by these alone. The library would write older names where a model type has some, as ViT does,
        and the Trainer would leave at random what it does not find, with a line in its log.
        """
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(model, PreTrainedModel):
            with adapter.without_card(model):
                super()._save(*arguments, **named)
            return
        vars(model)["save_pretrained"] = functools.partial(model.save_pretrained, save_original_format=False)
        try:
            super()._save(*arguments, **named)
        finally:
            del vars(model)["save_pretrained"]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise UserError where a checkpoint lacks tensors of the model, which would stay at random."""
        super()._issue_warnings_after_load(load_result)
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        missing, held = set(load_result.missing_keys), model.state_dict(keep_vars=True)
        read = {id(one) for name, one in held.items() if name not in missing}  # which a tied one shares
        if lost := sorted(name for name in missing & held.keys() if id(held[name]) not in read):
            raise UserError(
                f"checkpoint: lacks {len(lost):,} tensors of the model, such as {lost[0]}, which would begin at random; remove it, and "
                "the stage begins anew"
            )

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        """Train for one epoch, unless a checkpoint of the last step was all that was left to load.

        The Trainer looks at `max_steps` only after a step, so it would take one more.
        """
        if self.state.global_step < self.state.max_steps:
            self.data_collator.begin(named["epoch"])
            super()._run_epoch(*arguments, **named)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count tokens as the Trainer does, in batches of several columns of ids, too, of which it would count none; of pictures their patches, and the tokens beside them."""
        if IDS in inputs and not vision.pictured(inputs):
            super()._track_num_input_tokens(inputs)
            return
        pad_id = int(getattr(self.processing_class, "pad_token_id", None) or 0)
        read = torch.tensor(positions_read(self.accelerator.unwrap_model(self.model), inputs, pad_id), device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(read).sum())

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of a step as the Trainer does, which counts the parameters anew in each step; over all columns of ids.

        Of pictures they are counted by their patches.
        """
        if vision.pictured(inputs):
            return vision_language.operations(self.accelerator.unwrap_model(self.model), inputs)
        name = getattr(self.model, "main_input_name", IDS)
        columns = [inputs[name]] if name in inputs else [inputs[f"{prefix}{IDS}"] for prefix in prefixes(inputs)]
        if self._operations is None:
            self._operations = int(super().floating_point_ops({name: torch.zeros(1)}))
        return self._operations * int(sum(column.numel() for column in columns))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Do what the Trainer does, and remember the loss with the rows that it came from."""
        self.position = inputs.get(POSITION, "") if isinstance(inputs, Mapping) else ""
        numbers = take_rows(inputs)
        with _stays_in_training(model) if self._asked else refusals([self.args], within=True):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._asked = True
        self._seen.append((loss.detach(), numbers))
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the gradient's norm; UserError where it or a loss behind it is not finite.

        The Trainer asks for it between the last backward pass and the optimizer's step.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a sharded model
        losses = torch.stack([loss for loss, _ in self._seen])
        well = torch.isfinite(losses).all()
        if self.accelerator.scaler is None:  # with fp16 the scaler skips such a step by itself
            well = well & torch.isfinite(torch.as_tensor(norm, device=well.device))
        if self.accelerator.num_processes > 1:
            well = self.accelerator.reduce(well.int(), reduction="sum") == self.accelerator.num_processes
        if not bool(well):
            raise self._fault(losses.tolist(), norm)
        self._seen.clear()
        return norm

    def _fault(self, losses: list[float], norm: Any) -> UserError:
        every = [numbers for _, numbers in self._seen]
        guilty = [numbers for numbers, loss in zip(every, losses, strict=True) if not math.isfinite(loss)]
        if self.accelerator.num_processes > 1:
            every, guilty = gather_object(every), gather_object(guilty)
        what = "the loss" if guilty else "the gradient"
        rows = [self.origin(number) for number in sorted({number for batch in guilty or every for number in batch})]
        more = f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
        return UserError(
            f"step {self.state.global_step + 1}: {what} is not finite (loss {losses}, norm of the gradient {float(norm)}); "
            "nothing was learned from it and the last whole checkpoint is kept",
            f"step {self.state.global_step + 1}: its rows are {', '.join(rows[:_SHOWN])}{more}; "
            "look at them, or lower learning_rate",
        )


class Loss(Protocol):
    """What an objective or a task asks of a model: the parts of a loss, their weights and their items."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Return part → weight."""

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return part → items in a batch."""

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return part → sum over its items."""


class ObjectiveTrainer(StageTrainer):
    """A Trainer whose loss is an objective's or a task's, each part of it divided by its own items of the whole step.

    The stock Trainer is wrong by the number of accumulation steps for most models that are not causal.
    """

    loss_is_scaled_for_ga = True
    objective: Loss

    def __init__(self, objective: Loss, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.objective = objective

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Return how many items each part of the loss has in all batches of a step, on all processes."""
        total = {part: torch.zeros((), dtype=torch.long, device=device) for part in self.objective.weights}
        for batch in batch_samples:
            for part, count in self.objective.counts(batch).items():
                total[part] += count
        return self.accelerator.reduce(total, reduction="sum") if self.accelerator.num_processes > 1 else total

    def loss_of(self, batch: Mapping[str, Any]) -> Any:
        """Return the loss of a batch, by its own items, under the model as it is; each process asks for that of the same rows."""
        items = self._get_num_items_in_batch([batch], self.args.device)
        model: Any = self.model
        with negatives.apart():
            return self.compute_loss(model, dict(batch), num_items_in_batch=items)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the weighted sum of the parts; gradients are averaged over processes, so it is that many times larger."""
        parts = self.objective.losses(model, inputs)
        loss: Any = sum(
            weight * parts[part] / num_items_in_batch[part].clamp(min=1) for part, weight in self.objective.weights.items()
        )
        return loss * self.accelerator.num_processes  # type: ignore[no-any-return]


def _out_of_patience(callback: Any) -> bool:
    return (
        isinstance(callback, EarlyStoppingCallback)
        and callback.early_stopping_patience_counter >= callback.early_stopping_patience
    )


class TaskTrainer(ObjectiveTrainer):
    """An ObjectiveTrainer that stops where answers to rows held back for it get no better."""

    validate: Callable[[Any], dict[str, float]]

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        """Train for one epoch, unless the stage was killed after it had stopped."""
        if not any(_out_of_patience(callback) for callback in self.callback_handler.callbacks):
            super()._run_epoch(*arguments, **named)

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Return the figures of the rows that were held back, each under `eval_` and its name."""
        found = {f"eval_{name}": value for name, value in self.validate(self.model).items()}
        self.log(dict(found))  # which adds to it
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

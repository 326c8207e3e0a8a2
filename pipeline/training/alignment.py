"""What stages share that train on rated answers by a library's trainer: exact averages, no dropout, a warning of collapse."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pipeline.models.tokenization import stop_ids
from pipeline.system.errors import UserError
from pipeline.training.trainer import StageTrainer

if TYPE_CHECKING:
    from datasets import Dataset

    from pipeline.chain.run import Run

COLLAPSED = math.log(2)  # nats by which the log-probability of a token falls where it becomes half as likely
LOGGED = "change/chosen"  # of the log: nats a token by which the answers that were liked became likelier than under the parent
_FIRST_ROWS = 64  # looked at before the first step


class AlignmentTrainer(StageTrainer):
    """A StageTrainer beside a trainer of trl that averages its loss over each batch.

    It averages over all batches of an optimizer step, on all processes, so that batches of different sizes count by
    their items: 8 batches of 1 give the gradient of 1 batch of 8. Where a step is one batch on one process, every
    factor is exactly 1.
    """

    beta: float
    _metrics: Any  # of trl: mode → name → values since the last log
    say: Callable[[str], None] = print

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if not self.beta:
            raise UserError("beta: 0 leaves the loss of rated answers without a gradient; expected more than 0")
        self._liked = torch.zeros(2)  # answers that were liked since the last log, and their tokens
        self._warned = False

    @abstractmethod
    def items(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return of a batch the items of its loss (`rows`), its answers that were liked (`liked`) and their `tokens`."""

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Return the items of all batches of a step, on all processes, and the number of those batches."""
        found: dict[str, Any] = {"batches": len(batch_samples)}
        for batch in batch_samples:
            for name, count in self.items(batch).items():
                found[name] = found.get(name, 0) + count
        self._liked += torch.tensor([float(found.get("liked", 0)), float(found.get("tokens", 0))])
        total = {name: torch.as_tensor(count, device=device) for name, count in found.items()}
        total = self.accelerator.reduce(total, reduction="sum") if self.accelerator.num_processes > 1 else total
        return {name: int(count) for name, count in total.items()}

    def factors(self, batch: Mapping[str, Any], total: Mapping[str, int] | None) -> dict[str, float]:
        """Return by what the mean over a batch's items is multiplied, so that the mean over batches is that over all items."""
        found = {name: int(count) for name, count in self.items(batch).items()}
        if total is None:
            return dict.fromkeys(found, 1.0)
        return {name: count * total["batches"] / max(1, total[name]) for name, count in found.items()}

    def log(self, logs: dict[str, float], *more: Any, **named: Any) -> None:
        """Log by how much the answers that were liked became likelier, and warn once where they became unlikely."""
        rewards, (liked, tokens) = self._metrics["train"].get("rewards/chosen"), self._liked.tolist()
        if rewards and liked and self.beta:
            change = sum(rewards) / len(rewards) / self.beta * liked / tokens
            logs[LOGGED] = change
            self._liked.zero_()
            if change < -COLLAPSED and not self._warned:
                self._warned = True
                self.say(
                    f"step {self.state.global_step}: the answers that were liked have become unlikely, by {-change:.2f} nats a "
                    "token against the parent; what the model knew goes with them. Lower learning_rate or raise beta; in "
                    "a mixture of losses, raise the weight of the likelihood"
                )
        super().log(logs, *more, **named)


def without_dropout(run: Run, model: Any, arguments: Any) -> None:
    """Turn off all dropout, in attention too, which trl leaves on: the reference is the parent, not a random part of it.

    Raises UserError where dropout was asked for.
    """
    if run.options.lora_dropout:
        raise UserError("lora_dropout: has no effect here, since the reference must be the parent itself; leave it out")
    if not arguments.disable_dropout:
        raise UserError("disable_dropout: false would draw the reference at random; leave it out")
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


def answers_end(dataset: Dataset, columns: list[str], tokenizer: Any) -> None:
    """Raise UserError where one of the first answers lacks the token that ends an answer, which it would never learn."""
    stops = set(stop_ids(tokenizer))
    first = dataset[:_FIRST_ROWS]
    for column in columns:
        for number, ids in enumerate(first[column]):
            if not ids or ids[-1] not in stops:
                raise UserError(f"row {number}: its answer does not end with a special token; look at the chat template")

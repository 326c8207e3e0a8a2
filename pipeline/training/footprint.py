"""How much memory a step holds at its peak, told from the same step on fewer rows.

The sizes of all tensors that a step makes are followed operation by operation. A step on one row and a step on two run the
same operations, so what is held after each of them grows by a constant from row to row: the curve of any number of rows,
and its peak, follow without that step being taken.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_aten: Any = torch.ops.aten


def _sdpa(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _sdpa_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# What the counter of torch does not know: a CPU's fused attention takes as many operations as the others.
_FUSED = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
}
_LINEAR = ("mm", "addmm", "_grouped_mm", "convolution", "convolution_backward")  # operations whose count follows the tokens


Event = tuple[int, int]  # (which of the tensors, its bytes, or 0 where it is freed)


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step on some rows made: tensors in the order in which they came and went, its logits and operations."""

    events: Sequence[Event]
    logits: int  # bytes of the largest tensor with a score for each token of the vocabulary
    linear: int  # floating point operations of products with weights
    attention: int  # of products between positions

    @property
    def peak(self) -> int:
        """Bytes of all tensors at the moment when there are most."""
        return self._peak[0]

    @property
    def kept(self) -> int:
        """Bytes at that moment of tensors that stay when the step is over, which are its gradients."""
        return self._peak[1]

    @functools.cached_property
    def _peak(self) -> tuple[int, int]:
        freed = {tensor for tensor, size in self.events if not size}
        sizes: dict[int, int] = {}
        now = stays = 0
        most = 0, 0
        for tensor, size in self.events:
            now += size - sizes.get(tensor, 0)
            sizes[tensor] = size
            stays += size if tensor not in freed else 0
            most = max(most, (now, stays))
        return most

    def alike(self, other: Step) -> bool:
        """Say whether both made the same tensors in the same order, of whatever sizes."""
        return [(one, bool(size)) for one, size in self.events] == [(one, bool(size)) for one, size in other.events]


def extrapolated(few: Step, more: Step, times: float) -> Step:
    """Return the step on rows that are `times` the difference of two steps more than those of the first.

    What both made in the same order grows by a constant; ValueError where they did not.
    """
    if not few.alike(more):
        raise ValueError("the two steps ran other operations")

    def at(one: int, other: int) -> int:
        return round(one + times * (other - one))

    events = [(tensor, at(size, other)) for (tensor, size), (_, other) in zip(few.events, more.events, strict=True)]
    return Step(events, at(few.logits, more.logits), at(few.linear, more.linear), at(few.attention, more.attention))


class _Followed(TorchDispatchMode):
    """Follow the storages that operations make until they are freed."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.logits = vocabulary, 0
        self.events: list[Event] = []
        self.known: set[int] = set()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, torch.Tensor):
                self._seen(one.untyped_storage(), made=False)
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor):
                new = self._seen(one.untyped_storage(), made=True)
                if new and one.dim() > 1 and one.shape[-1] == self.vocabulary and not _backwards():  # no weight's gradient
                    self.logits = max(self.logits, one.untyped_storage().nbytes())
        return out

    def _seen(self, storage: Any, made: bool) -> bool:
        """Note a storage, and say whether it is met for the first time; what is only read was there before the step."""
        if storage._cdata in self.known or not storage.nbytes():
            return False
        self.known.add(storage._cdata)
        if made:
            self.events.append((self.made, storage.nbytes()))
        weakref.finalize(storage, self._freed, storage._cdata, self.made if made else None)
        self.made += made
        return True

    def _freed(self, storage: int, tensor: int | None) -> None:
        self.known.discard(storage)
        if tensor is not None:
            self.events.append((tensor, 0))


def _backwards() -> bool:
    return int(torch._C._current_graph_task_id()) != -1


def followed(step: Callable[[], Any], vocabulary: int) -> Step:
    """Take a step and return what it made. `vocabulary`: by which logits are known."""
    tracker = _Followed(vocabulary)
    counter = FlopCounterMode(display=False, custom_mapping=_FUSED)
    with counter, tracker:
        step()
    counts = counter.get_flop_counts().get("Global", {})
    linear = sum(count for name, count in counts.items() if str(name).removeprefix("aten.") in _LINEAR)
    return Step(tuple(tracker.events), tracker.logits, linear, sum(counts.values()) - linear)


def of_configuration(config: Any, auto: Any, length: int, rows: int = 1) -> tuple[Any, Step]:
    """Return a model of a configuration and a step of it on rows of a length, both without memory: on torch's meta device.

    `auto`: the Auto class that builds it. Every parameter is trained.
    """
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=False)
        ids = torch.zeros((rows, length), dtype=torch.long)
    model.train()
    vocabulary = config.get_text_config().vocab_size
    return model, followed(lambda: model(input_ids=ids, labels=ids).loss.backward(), vocabulary)

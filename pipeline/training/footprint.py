"""Peak memory of a training step, extrapolated from the same step on fewer rows.

The sizes of all tensors that a step makes are followed operation by operation, and the operations are counted. Steps on two
rows and on three run the same operations, so each tensor grows by a constant from row to row: the curve of any number of rows,
and its peak, follow without that step being taken.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_aten: Any = torch.ops.aten


def _fused(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _fused_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


# Of what torch's table does not have: a CPU's fused attention takes as many operations as the others.
_FORMULAS = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
}
_LINEAR = {
    _aten.mm,
    _aten.addmm,
    _aten._grouped_mm,
    _aten.convolution,
    _aten.convolution_backward,
}  # their count follows the tokens


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

    Where both made the same tensors in the same order, each grows by a constant; else the two peaks alone tell how it goes on.
    """

    def at(one: int, other: int) -> int:
        return max(0, round(one + times * (other - one)))

    same = few.alike(more)
    events = [(tensor, at(size, other)) for (tensor, size), (_, other) in zip(few.events, more.events, strict=False)]
    peaks = [(0, at(few.peak, more.peak)), (0, 0)]
    return Step(
        events if same else peaks, at(few.logits, more.logits), at(few.linear, more.linear), at(few.attention, more.attention)
    )


class _Followed(TorchDispatchMode):
    """Follow the storages that operations make until they are freed."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.logits = vocabulary, 0
        self.events: list[Event] = []
        self.known: set[int] = set()
        self.made = self.linear = self.attention = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()  # whoever asks a tensor without numbers is told yes
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, torch.Tensor):
                self._seen(one.untyped_storage(), made=False)
        out = func(*args, **(kwargs or {}))
        if (kind := func._overloadpacket) in _FORMULAS:
            count = _FORMULAS[kind](*args, **(kwargs or {}), out_val=out)
            if kind in _LINEAR:
                self.linear += count
            else:
                self.attention += count
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
    gc.collect()
    gc.disable()  # tensors in circles of references would be freed at moments that have nothing to do with the step
    try:
        with tracker:
            step()
    finally:
        gc.enable()
    return Step(tuple(tracker.events), tracker.logits, tracker.linear, tracker.attention)


def of_configuration(
    config: Any,
    auto: Any,
    length: int,
    rows: int = 1,
    prepare: Callable[[Any], Any] = lambda model: model,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, Step]:
    """Return a model of a configuration and a step of it on rows of a length; neither takes memory, as torch only fakes them.

    `auto`: the Auto class that builds it. `prepare`: what makes of the model the one that is trained, such as an adapter.
    """
    with torch.device("meta"):
        model = prepare(auto.from_config(config, dtype=dtype, trust_remote_code=False))
    model.train()
    vocabulary = config.get_text_config().vocab_size
    with FakeTensorMode():
        _fake(model)
        ids = torch.zeros((rows, length), dtype=torch.long)
        return model, followed(lambda: model(input_ids=ids, labels=ids).loss.backward(), vocabulary)


def _fake(model: Any) -> None:
    """Put tensors of a CPU, which torch fakes here, in the place of a model's on the meta device; shared ones stay shared."""
    made: dict[int, Any] = {}

    def like(one: torch.Tensor) -> Any:
        if id(one) not in made:
            empty = torch.empty(one.shape, dtype=one.dtype)
            made[id(one)] = torch.nn.Parameter(empty, one.requires_grad) if isinstance(one, torch.nn.Parameter) else empty
        return made[id(one)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            held.update({name: like(one) for name, one in held.items() if one is not None})

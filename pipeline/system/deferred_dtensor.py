"""Defers the import of DTensor, and of sympy with it, to processes of a launcher, the only ones that can shard a model."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.system.stand_ins import standing_for

# What a launcher says to each of its processes; accelerate reads these.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "ACCELERATE_")


class _NoTensor:
    """Stands for the class of distributed tensors, of which there are none."""


def alone() -> bool:
    """Say whether no launcher started this process."""
    return not any(key.startswith(_LAUNCHED) for key in os.environ)


def tell(module: Any) -> None:
    """Let a library's module take torch for one that cannot distribute a model, unless this process was launched."""
    if alone():
        module.is_torch_distributed_available = lambda: False


@contextlib.contextmanager
def _told(module: Any) -> Iterator[None]:
    yield
    tell(module)


@contextlib.contextmanager
def _layers_without(module: Any) -> Iterator[None]:
    """Let peft look for no distributed layers."""
    yield
    if alone():
        module._torch_supports_distributed = False


@contextlib.contextmanager
def _parameters_without(module: Any) -> Iterator[None]:
    """Let the Trainer look for no distributed parameters."""
    yield
    if alone():
        module.has_mixed_dtensor = lambda parameters: False


@contextlib.contextmanager
def _models_without(module: Any) -> Iterator[None]:
    """Let accelerate look for no distributed model, and for none in a wrapper that distributes it."""
    yield
    tell(module)
    if alone():
        module.model_has_dtensor = lambda model: False


@contextlib.contextmanager
def _gradients_without(module: Any) -> Iterator[None]:
    """Let accelerate clip gradients as those of one device, which they are."""
    yield

    def clip(_: Any, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        import torch

        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type=norm_type)

    if alone():
        module.Accelerator._clip_grad_norm_dtensor_aware = clip


@contextlib.contextmanager
def _storage_without(module: Any) -> Iterator[None]:
    """Let the hub's library save tensors as whole ones."""
    yield
    if alone():
        for name in ("_get_unique_id", "get_torch_storage_size"):
            setattr(module, name, _within(getattr(module, name)))


def _within(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(function)
    def call(tensor: Any) -> Any:
        with _without(None):
            return function(tensor)

    return call


@contextlib.contextmanager
def _without(_: Any) -> Iterator[None]:
    with standing_for("torch.distributed.tensor", DTensor=_NoTensor) if alone() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _with(_: Any) -> Iterator[None]:
    """Import them for a module that relies on another to have done so."""
    import torch.distributed.tensor  # noqa: F401

    yield


AROUND: dict[str, Callable[[Any], contextlib.AbstractContextManager[None]]] = {  # module → what its import runs within
    "accelerate.accelerator": _gradients_without,
    "accelerate.utils.other": _models_without,
    "huggingface_hub.serialization._torch": _storage_without,
    "peft.tuners.tuners_utils": _layers_without,
    "transformers.trainer_optimizer": _parameters_without,
    "transformers.utils.import_utils": _told,
    "trl.models.activation_offloading": _without,
    "trl.trainer.utils": _without,
    "trl.trainer.distillation_trainer": _with,
}

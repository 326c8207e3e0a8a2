"""Defers the import of torch's compiler until something compiles: it takes as long as the rest of torch, and brings sympy.

Functions that are excluded from compiled code, or taken into it whole, import the compiler only to register themselves. Here
they are noted instead, and registered once something else has imported it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.system.stand_ins import standing_for

_COMPILER = "torch._dynamo"
_SHAPES = "torch.fx.experimental.symbolic_shapes"
_OF_NUMBERS: dict[str, Callable[..., Any]] = {  # what its functions return for Python's own numbers, and for tuples of them
    "guard_or_false": bool, "guard_or_true": bool, "expect_true": bool, "has_guarding_hint": lambda number: True,
    "is_nested_int": lambda number: False, "guarding_hint_or_throw": lambda number: number,
    "sym_or": lambda *values: functools.reduce(operator.or_, values), "sym_and": lambda *values: functools.reduce(operator.and_, values),
    "sym_eq": operator.eq, "guard_size_oblivious": bool, "statically_known_true": bool,
}  # fmt: skip
_left_out: list[Any] = []
_taken_whole: list[Any] = []


def _compiles() -> bool:
    return _COMPILER in sys.modules


@contextlib.contextmanager
def _marked_without(module: Any) -> Iterator[None]:
    """Let functions that torch leaves out of compiled code run as they are until there is a compiler."""
    yield
    theirs = module._disable_dynamo

    @functools.wraps(theirs)
    def disable(fn: Any = None, recursive: bool = True) -> Any:
        if fn is None:
            return functools.partial(disable, recursive=recursive)
        if not _compiles():
            fn.__dynamo_disable = fn  # what their wrapper calls; where there is none, it imports the compiler
            _left_out.append(fn)
        return theirs(fn, recursive)

    module._disable_dynamo = disable


@contextlib.contextmanager
def _asked_without(module: Any) -> Iterator[None]:
    """Let other libraries mark functions without a compiler, too."""
    yield
    leave_out, take_whole = module.disable, module.allow_in_graph

    @functools.wraps(leave_out)
    def disable(fn: Any = None, recursive: bool = True, **named: Any) -> Any:
        if _compiles() or named or not isinstance(fn, types.FunctionType | None):
            return leave_out(fn, recursive, **named)
        from torch import _compile

        return _compile._disable_dynamo(fn, recursive)

    module.disable = disable
    module.allow_in_graph = functools.wraps(take_whole)(lambda fn: take_whole(fn) if _compiles() else _take_whole(fn))


def _take_whole(fn: Any) -> Any:
    _taken_whole.append(fn)
    return fn


def _constant(fn: Any) -> Any:
    fn._dynamo_marked_constant = True  # which is all that the compiler's own mark does
    return fn


@contextlib.contextmanager
def _kernels_without(_: Any) -> Iterator[None]:
    """Let transformers define kernels, for devices that are not here, without the compiler by whose name it marks them."""
    import torch

    if _compiles() or "_dynamo" in vars(torch):  # by a kernel that imports this one
        yield
        return
    marks: Any = types.SimpleNamespace(assume_constant_result=_constant, allow_in_graph=_take_whole)
    torch._dynamo = marks
    try:
        yield
    finally:
        if vars(torch)["_dynamo"] is marks:
            del torch._dynamo


@contextlib.contextmanager
def _told(module: Any) -> Iterator[None]:
    """Tell the compiler, now that there is one, what was asked of it."""
    yield
    while _left_out:
        del _left_out.pop().__dynamo_disable
    while _taken_whole:
        module.allow_in_graph(_taken_whole.pop())


@contextlib.contextmanager
def _steps_without(module: Any) -> Iterator[None]:
    """Let optimizers step without a compiler, which they would only ask to begin another graph."""
    yield
    theirs = module._use_grad_for_differentiable

    def use_grad(function: Callable[..., Any]) -> Callable[..., Any]:
        known = theirs(function)

        @functools.wraps(function)
        def step(self: Any, *arguments: Any, **named: Any) -> Any:
            if _compiles():
                return known(self, *arguments, **named)
            import torch

            with torch.set_grad_enabled(self.defaults["differentiable"]):
                return function(self, *arguments, **named)

        return step

    module._use_grad_for_differentiable = use_grad


@contextlib.contextmanager
def _models_without(module: Any) -> Iterator[None]:
    """Let accelerate see that a model is not compiled where nothing is."""
    yield
    for name in ("is_compiled_module", "has_compiled_regions"):
        setattr(module, name, _unless_compiled(getattr(module, name)))


def _unless_compiled(ask: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return functools.wraps(ask)(lambda module: _compiles() and ask(module))


class _NoSymbol:
    """Stands for sympy's class of expressions, of which there are none before somebody imported sympy."""


@contextlib.contextmanager
def _typed_without(module: Any) -> Iterator[None]:
    """Let the types of operations on tensors without storage be found without sympy."""
    yield
    theirs = module.elementwise_dtypes

    @functools.wraps(theirs)
    def elementwise_dtypes(*arguments: Any, **named: Any) -> Any:
        with standing_for("sympy", Basic=_NoSymbol):
            return theirs(*arguments, **named)

    module.elementwise_dtypes = elementwise_dtypes


class _Shapes(types.ModuleType):
    """Stands for torch's module of symbolic shapes, of which most are plain numbers; it is imported for everything else."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_symbolic(), name)


def _symbolic() -> Any:
    if isinstance(sys.modules.get(_SHAPES), _Shapes):
        del sys.modules[_SHAPES]
    return importlib.import_module(_SHAPES)


def _is_plain(value: Any) -> bool:
    return type(value) in (bool, int, float) or (isinstance(value, tuple) and all(type(one) is int for one in value))


def _plain(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of that module, which needs the module for none of Python's own numbers."""

    def ask(*values: Any, **named: Any) -> Any:
        if not named and (len(values) == 1 or name.startswith("sym_")) and all(map(_is_plain, values)):
            return answer(*values)
        return getattr(_symbolic(), name)(*values, **named)

    return ask


@contextlib.contextmanager
def _shapes_without(module: Any) -> Iterator[None]:
    """Let torch ask about the shapes of tensors without storage without sympy."""
    yield
    if _SHAPES not in sys.modules:
        found = _Shapes(_SHAPES)
        vars(found).update({name: _plain(name, answer) for name, answer in _OF_NUMBERS.items()})
        sys.modules[_SHAPES] = module.symbolic_shapes = found


def _indexed() -> Any:
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()


@contextlib.contextmanager
def _masks_without(_: Any) -> Iterator[None]:
    """Let transformers import what it needs of the compiler when it makes a mask by vmap."""
    with standing_for(f"{_COMPILER}._trace_wrapped_higher_order_op", TransformGetItemToIndex=_indexed):
        yield


AROUND: dict[str, Callable[[Any], contextlib.AbstractContextManager[None]]] = {  # module → what its import runs within
    _COMPILER: _told,
    "torch._prims_common": _typed_without,
    "torch.fx.experimental": _shapes_without,
    "torch._compile": _marked_without,
    "torch.compiler": _asked_without,
    "torch.optim.optimizer": _steps_without,
    "accelerate.utils.other": _models_without,
    "transformers.masking_utils": _masks_without,
    "transformers.integrations.deepgemm": _kernels_without,
    "transformers.integrations.finegrained_fp8": _kernels_without,
    "transformers.integrations.sonicmoe": _kernels_without,
}

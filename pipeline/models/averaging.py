"""The mean of several models' weights: a model soup (Wortsman et al. 2022, eq. 1 with equal shares)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.system.errors import UserError

_ASIDE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # of a configuration, what no weight depends on


def averaged(models: Sequence[Any], folders: Sequence[str], mean_of: str = "") -> Any:
    """Return the first model with the mean of all weights, added up in fp64.

    `mean_of`: a number in their configurations whose mean is taken, too. UserError where models differ in anything but their
    weights: configuration, labels, vocabulary, sizes, or a tensor of whole numbers.
    """
    import torch

    first, *others = models
    for folder, model in zip(folders[1:], others, strict=True):
        _alike(first, model, folders[0], folder, mean_of)
    states = [model.state_dict() for model in models]
    found = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            found[name] = (sum(state[name].double() for state in states) / len(states)).to(tensor.dtype)
        elif all(torch.equal(tensor, state[name]) for state in states[1:]):
            found[name] = tensor
        else:
            raise UserError(f"{name}: differs between {' and '.join(folders)}, and whole numbers have no mean")
    first.load_state_dict(found)
    if mean_of and hasattr(first.config, mean_of):
        setattr(first.config, mean_of, sum(getattr(model.config, mean_of) for model in models) / len(models))
    return first


def _alike(one: Any, two: Any, here: str, there: str, mean_of: str) -> None:
    """Raise UserError where two models differ in more than their weights."""
    mine, theirs = (
        {key: value for key, value in model.config.to_dict().items() if key not in (*_ASIDE, mean_of)} for model in (one, two)
    )
    faults = [
        f"{there}: {key} is {theirs.get(key)!r}, in {here} {mine.get(key)!r}"
        for key in sorted({*mine, *theirs})
        if mine.get(key) != theirs.get(key)
    ]
    words = [Path(folder, "tokenizer.json") for folder in (here, there)]
    if all(path.is_file() for path in words) and len({path.read_bytes() for path in words}) > 1:
        faults.append(f"{there}: its tokenizer is another than that of {here}")
    sizes = [{name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} for model in (one, two)]
    if sizes[0] != sizes[1] and not faults:
        faults.append(f"{there}: its tensors are of other sizes than those of {here}")
    if faults:
        raise UserError(*(f"{fault}; models are averaged that differ in their weights alone" for fault in faults))

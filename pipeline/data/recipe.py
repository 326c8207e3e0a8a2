"""A recipe: one file that says where the rows of a data set come from, what is dropped, and what is held out.

It is a YAML file that names sources (`pipeline.data.yaml_recipe` explains every key) or a Python module with a
generator function for each dataset type (`pipeline.data.python_recipe`). `--data` needs no file: it names rows
directly, or a finished node that hands on rows. Either way they come out as `Rows` of one type, counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data import node_recipe, python_recipe, sources, types, yaml_recipe
from pipeline.data.base import EMPTY, Recipe, listing
from pipeline.data.closure import FOLDER
from pipeline.data.rows import SPLITS, Rows
from pipeline.data.source_recipe import Source, SourceRecipe
from pipeline.data.split import HELD_OUT
from pipeline.system.errors import UserError
from pipeline.system.words import meant

__all__ = ["EMPTY", "FOLDER", "SPLITS", "Recipe", "Rows", "from_data", "listing", "load", "of"]


def load(name: str) -> Recipe:
    """Return a recipe by name (in data_recipes) or path; UserError if there is none or it is malformed.

    `NAME:SUBSET` reads another subset of its hub data sets, such as another language.
    """
    whole, (name, _, subset) = name, name.partition(":")
    for path in (Path(name), FOLDER / f"{name}.py", FOLDER / f"{name}.yaml"):
        if path.suffix == ".py" and path.is_file() and not subset:
            return python_recipe.loaded(path, path.stat().st_mtime_ns)
        if path.suffix == ".yaml" and path.is_file():
            return yaml_recipe.from_yaml(path, subset)
    known = sorted(item.stem for item in FOLDER.glob("*") if item.suffix in (".py", ".yaml") and item.stem != "__init__")
    near = meant(name, known, "")
    raise UserError(
        f"recipe: {whole}: no such recipe; {f'{near} Known' if near else 'known'} are {', '.join(known)}, or give a path"
    )


def from_data(data: str, type: str) -> Recipe:
    """Return the recipe of `--data`: a node that hands on rows; a file, a glob, a folder or a hub id; or a mixture of these."""
    path = Path(data)
    if not path.exists() and (given := _mixture(data, type)):
        return SourceRecipe(data, given, type)
    if node := node_recipe.found(data, load):
        return node
    return SourceRecipe(data, [_source(data, type)], type)


def _source(data: str, type: str) -> Source:
    """Return a file, a glob, a folder or a hub id as a source of rows of a type."""
    path, kinds = Path(data), types.load(type).kinds
    known = sources.kind(path) in kinds
    if path.exists() or known or any(letter in data for letter in "*?[") or data.count("/") != 1:
        return Source.of(data, type)
    return Source(hub={"name": data})


def _mixture(data: str, type: str) -> list[Source]:
    """Return the sources of `a.jsonl=0.7,b.jsonl=0.3,c.jsonl=held_out`; none where it is no such list. UserError for a bad share."""
    parts = [part.rpartition("=") for part in data.split(",")]
    if not any(number == HELD_OUT or _number(number) is not None for _, _, number in parts):
        return []
    faults = []
    for name, _, number in parts:
        share = _number(number)
        if not name or (number != HELD_OUT and share is None):
            faults.append(f"{data}: {name or number}: each part of a mixture is FILE=SHARE, or FILE={HELD_OUT}")
        elif share is not None and not 0 < share < math.inf:
            faults.append(f"{data}: {name}: share {number} is not above 0")
    if faults:
        raise UserError(*faults)
    return [
        replace(_source(name, type), share=_number(number) or 0.0, held_out=True if number == HELD_OUT else None)
        for name, _, number in parts
    ]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def of(record: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a finished node was made with, by its record."""
    data = record["recipe"].get("data")
    return from_data(data, record["recipe"]["type"]) if data else load(record["config"]["recipe"])

"""A recipe: one file that says where the rows of a data set come from, what is dropped, and what is held out.

It is a YAML file that names sources (`pipeline.data.yaml_recipe` explains every key) or a Python module with a
generator function for each dataset type (`pipeline.data.python_recipe`). `--data` needs no file: it names rows
directly, or a finished node that hands on rows. Either way they come out as `Rows` of one type, counted.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data import node_recipe, python_recipe, sources, yaml_recipe
from pipeline.data.base import EMPTY, Recipe, listing
from pipeline.data.closure import FOLDER
from pipeline.data.rows import SPLITS, Rows
from pipeline.data.source_recipe import Source, SourceRecipe
from pipeline.system.errors import UserError

__all__ = ["EMPTY", "FOLDER", "SPLITS", "Recipe", "Rows", "from_data", "listing", "load", "of"]


def load(name: str) -> Recipe:
    """Return a recipe by name (in data_recipes) or path; UserError if there is none or it is malformed."""
    for path in (Path(name), FOLDER / f"{name}.py", FOLDER / f"{name}.yaml"):
        if path.suffix == ".py" and path.is_file():
            return python_recipe.loaded(path, path.stat().st_mtime_ns)
        if path.suffix == ".yaml" and path.is_file():
            return yaml_recipe.from_yaml(path)
    known = sorted(item.stem for item in FOLDER.glob("*") if item.suffix in (".py", ".yaml") and item.stem != "__init__")
    close = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {close[0]}? Known are" if close else "known are"
    raise UserError(f"recipe: {name}: no such recipe; {remedy} {', '.join(known)}, or give a path")


def from_data(data: str, type: str) -> Recipe:
    """Return the recipe of `--data`: a node that hands on rows, or files, a glob, a folder or a hub id, 5% held out."""
    path = Path(data)
    if node := node_recipe.found(data, load):
        return node
    known = sources.kind(path) in sources.READERS
    if path.exists() or known or any(letter in data for letter in "*?[") or data.count("/") != 1:
        return SourceRecipe(data, [Source(files=tuple(sources.expand(data)))], type)
    return SourceRecipe(data, [Source(hub={"name": data})], type)


def of(record: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a finished node was made with, by its record."""
    data = record["recipe"].get("data")
    return from_data(data, record["recipe"]["type"]) if data else load(record["config"]["recipe"])

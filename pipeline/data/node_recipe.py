"""The recipe of a node that hands on rows: what a stage wrote with `pipeline.data.rows.write`, read by its children."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.data.base import EMPTY, Recipe
from pipeline.data.judge import Judge
from pipeline.data.rows import SPLITS, Rows, count, read
from pipeline.system import cache, hashes
from pipeline.system.errors import UserError


class NodeRecipe(Recipe):
    """Rows of a finished node; its record stands for their content, and files that are no longer its own are refused.

    What asks about their subject is the judge of the recipe that the node itself was made with; `load` gives that by name.
    """

    def __init__(self, name: str, folder: Path, record: Mapping[str, Any], load: Callable[[str], Recipe]) -> None:
        self.name, self.folder, self.record, self.load = name, folder, record, load
        self.type = str(record["rows_type"])

    def digest(self, type: str) -> str:
        """Return the digest over the node's files, which is what its record says of them."""
        self._check(type)
        return str(self.record["outputs"])

    def contents(self) -> list[tuple[str, str]]:
        """Return the files of the rows."""
        return [(f"{self.folder.name}/{split}.parquet", self.record["files"][f"{split}.parquet"]["sha256"]) for split in SPLITS]

    def types(self) -> list[str]:
        """Return the one type that the node made."""
        return [self.type]

    def rows(self, type: str, split: str, seed: int) -> Rows:
        """Return the rows of a split, in the order in which the node wrote them, whatever the seed."""
        self._check(type)
        path = self.folder / f"{split}.parquet"
        result = Rows(name=self.name, identity=cache.key(self.digest(type), type, split))
        result.clean(read(path), type, path)
        result.held_out = count(self.folder / "held_out.parquet")
        return result.usable(split)

    @functools.cached_property
    def _origin(self) -> Recipe:
        """The recipe that the node was made with; `EMPTY` where it read no rows, or plain files, which have no judge."""
        made_with = next((entry for entry in self.record.get("parents", []) if entry["role"] == "data"), None)
        if made_with:  # rows of a node in turn
            path = str(made_with["path"])
            return found(str(self.folder.parent / Path(path).name) if made_with["beside"] else path, self.load) or EMPTY
        own = self.record.get("recipe", {})
        named = own.get("type") and not own.get("data")
        return self.load(str(self.record["config"]["recipe"])) if named else EMPTY

    @property
    def judge(self) -> Judge | None:
        """The judge of the recipe that the node was made with."""
        return self._origin.judge

    def judge_digest(self) -> str:
        """Return the digest of that judge."""
        return self._origin.judge_digest()

    def _check(self, type: str) -> None:
        if type != self.type:
            raise UserError(f"{self.folder}: hands on rows of type {self.type}, but {type} is wanted")
        for name in (f"{split}.parquet" for split in SPLITS):
            path = self.folder / name
            if not path.is_file() or hashes.sha256(path) != self.record["files"].get(name, {}).get("sha256"):
                raise UserError(f"{path}: not the file that the node made; put it back, or make {self.folder} again")


def found(data: str, load: Callable[[str], Recipe]) -> NodeRecipe | None:
    """Return the recipe of a folder that is a node, or None for any other; UserError where it hands on no rows.

    `load` gives a recipe by its name.
    """
    folder = Path(data)
    path = folder / hashes.RECORD
    if not path.is_file():
        if (folder / hashes.CLAIM).is_file():
            raise UserError(f"{data}: a node that is not finished; run the command that makes it again")
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a whole JSON file ({error})") from None
    if not isinstance(record, dict) or "inputs" not in record:  # somebody else's manifest.json
        return None
    if not record.get("rows_type"):
        raise UserError(f"{data}: a node that hands on a model of family {record.get('family')}, not rows")
    return NodeRecipe(data, folder, record, load)

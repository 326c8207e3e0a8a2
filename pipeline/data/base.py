"""The interface of a recipe, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.data.judge import Judge
from pipeline.data.rows import Rows
from pipeline.system import hashes


class Recipe:
    """Where rows come from; `EMPTY` stands where no recipe was read yet."""

    name = ""
    streams = False  # whether its rows are read while a model trains, so that `rows` gives a sample of them

    def digest(self, type: str) -> str:
        """Return the digest of all that decides the rows of a type, in hex; UserError where it gives none of that type."""
        raise NotImplementedError

    def contents(self) -> list[tuple[str, str]]:
        """Return name and sha256 of every file behind the rows, for people; names without this machine's folders."""
        raise NotImplementedError

    def rows(self, type: str, split: str, seed: int) -> Rows:
        """Return the rows of a split; UserError if the data is broken or nothing is left to train on."""
        raise NotImplementedError

    def types(self) -> list[str]:
        """Return the names of the dataset types that it gives rows of."""
        raise NotImplementedError

    @property
    def judge(self) -> Judge | None:
        """What asks a model about the subject of the rows and grades its replies; None where nobody can."""
        return None

    def judge_digest(self) -> str:
        """Return the digest of all that decides what the judge asks and how it grades; empty where there is none."""
        return ""


EMPTY = Recipe()


def listing(files: Iterable[Path]) -> list[tuple[str, str]]:
    """Return name and sha256 of files; a name is the file's own with the folder that it lies in."""
    return [(f"{path.parent.name}/{path.name}".lstrip("/"), hashes.sha256(path)) for path in files]

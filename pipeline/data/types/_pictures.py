"""What the types of rows with a picture share: how data sets write one, and where a named one lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.data import pictures, sources
from pipeline.data.types import DatasetType, Malformed, Row

IMAGE = "image"
NAMES = (IMAGE, "img", "file_name")  # columns that hold a picture, or name its file


def _read(name: str, folder: Path) -> dict[str, Any]:
    """Return the bytes of a picture and its name, or why there are none."""
    if "://" in name:
        return {"path": name, "refused": "is an address, and nothing is fetched; give the file, or its bytes"}
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return {"path": name, "refused": f"lies outside of {folder}, the folder of the table that names it"}
    try:
        return {"path": name, "bytes": path.read_bytes()}
    except (OSError, ValueError):
        return {"path": name, "fault": "image file that is not there"}


def cell(value: Any) -> dict[str, str]:
    """Return what a row holds of a picture; Malformed where the column holds none."""
    if isinstance(value, bytes):
        return pictures.held(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("bytes"), (bytes, str)):
        if isinstance(value, Mapping) and "refused" in value:
            raise Malformed(f"image: {value['path']} {value['refused']}")
        if isinstance(value, Mapping) and ("fault" in value or value.get("bytes", "") is None):
            return {"path": str(value.get("path") or ""), "fault": str(value.get("fault") or "no image")}
        if value is None:
            return {"path": "", "fault": "no image"}
        raise Malformed(f"image is {type(value).__name__}, neither a file nor {{bytes, path}}")
    if isinstance(value["bytes"], str):  # of a row that was written here
        return dict(value)
    return pictures.held(value["bytes"], str(value.get("path") or ""))


def label(row: Mapping[str, Any]) -> str:
    """Return the label of a row, "" for none; Malformed where it is no single one."""
    value = row.get("label")
    if isinstance(value, (list, Mapping)):
        raise Malformed(f"label is {type(value).__name__}, not one label")
    return "" if value is None else str(value)


class Pictures(DatasetType):
    """A picture a row, and what else a type says of it."""

    asks = (IMAGE,)
    kinds = frozenset({"jsonl", "ndjson", "json", "csv", "tsv", "parquet", sources.ARCHIVE, *sources.PICTURES})
    beside = sources.PICTURES
    at_once, streams, names_dropped = 50, False, True

    def located(self, raw: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a row with the bytes of each picture that it names, which lies in or under the folder of its table."""
        found = dict(raw)
        for name in NAMES:
            value = raw.get(name)
            if isinstance(value, str):
                found[name] = _read(value, folder)
            elif isinstance(value, Mapping) and value.get("bytes") is None and isinstance(value.get("path"), str):
                found[name] = _read(value["path"], folder)
        return found

    def fault(self, row: Row) -> str | None:
        """Return why the picture can't be shown."""
        found: str | None = row[IMAGE].get("fault")
        return found

    def asked(self, row: Row) -> str:
        """Return what the picture looks like, its perceptual hash, so that it is on one side wherever it lies and whatever is said of it."""
        return str(row[IMAGE].get("hash", ""))

    def near(self, held_out: Iterable[Row]) -> Callable[[Row], bool]:
        """Return what says whether a picture looks nearly like a held-out one."""
        alike = pictures.near(map(self.asked, held_out))
        return lambda row: alike(self.asked(row))

    def told(self, row: Row) -> Row:
        """Return the row without the bytes of its picture."""
        return row | {IMAGE: {key: value for key, value in row[IMAGE].items() if key != "bytes"}}

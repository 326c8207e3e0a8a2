"""Rows of a data set on a hub, or of a local folder of the same form, read by `datasets`."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.data import sources
from pipeline.data.files import read as read_files
from pipeline.data.ranges import LINES, File
from pipeline.data.sources import Raw
from pipeline.system import process
from pipeline.system.errors import UserError

Item = TypeVar("Item")
_WAITS = (5.0,)  # seconds before a hub is asked again whose client gave up; it has tried each request six times by then
_silent: list[str] = []  # hubs that went on failing, which this process does not ask again


class _Json(NamedTuple):
    """A file of JSON: its name, by which people know it, and where it lies."""

    name: str
    path: Path


def read(name: str, subset: str | None = None, split: str = "train", revision: str | None = None) -> Iterator[Raw]:
    """Yield the raw rows of a data set on a hub, or of a local folder of the same form.

    Files of JSON whose columns are not declared are read as other files of ours are, since `datasets` turns a number or a
    list that comes late in a column into text; everything else is read by `datasets`.
    """
    rows = _loaded(name, subset, split, revision)
    if isinstance(rows, list):
        yield from _of_files(rows)
        return
    shown = [column for column, kind in (rows.features or {}).items() if type(kind).__name__ == "Image"]
    for column in shown:  # which are decoded where they are needed
        rows = rows.cast_column(column, type(rows.features[column])(decode=False))
    named = {column: kind for column, kind in (rows.features or {}).items() if _names(kind)}
    for number, row in enumerate(rows, start=1):
        names = {column: _named(row[column], kind) for column, kind in named.items()}
        yield f"{name}: row {number}", dict(row) | names | {column: _picture(row[column]) for column in shown}


def _picture(value: Any) -> Any:
    """Return the bytes and the path of a picture, whose file `datasets` may have left where it is."""
    if value and value["bytes"] is None and value["path"] and Path(value["path"]).is_file():
        return value | {"bytes": Path(value["path"]).read_bytes(), "path": Path(value["path"]).name}
    return value


def _loaded(name: str, subset: str | None, split: str, revision: str | None) -> Any:
    """Return a data set, or its files of JSON, from a hub that failed after some time; UserError where it goes on failing.

    It is also raised where the hub lacks what was named.
    """
    import datasets

    _client_in_our_words()

    hub = datasets.config.HF_ENDPOINT
    if hub in _silent and not Path(name).is_dir():
        raise UserError(f"{name}: is not asked for, since {hub} failed before")
    for wait in (*_WAITS, None):
        try:
            found = _json_files(name, subset, split, revision)
            return found or datasets.load_dataset(name, subset, split=split, revision=revision)
        except Exception as error:  # datasets raises some twenty kinds here, all of them about what was named or the network
            said = _said(error)
            if isinstance(error, StopIteration):
                raise UserError(f"{name}: is empty; its split {split!r} holds no row") from None
            if not _network(error):
                raise UserError(f"{name}: datasets can't load split {split!r}: {said}") from None
            if wait is None or said.startswith("Couldn't reach"):
                _silent.append(hub)
                kept = "what was loaded is kept, so run the same command again"
                raise UserError(f"{name}: the hub failed: {said}; {kept}") from None
            process.say("data", f"{name}: the hub failed ({said[:80]}); asking again in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("not reached")


def _json_files(name: str, subset: str | None, split: str, revision: str | None) -> list[_Json]:
    """Return the files of a split where all are JSON and nothing says what their columns are; they are downloaded."""
    import datasets

    builder = datasets.load_dataset_builder(name, subset, revision=revision)
    paths = list(map(str, (builder.config.data_files or {}).get(split, ())))
    declared = builder.info.features or getattr(builder.config, "field", None)
    if declared or not paths or any(sources.kind(Path(path)) not in LINES for path in paths):
        return []
    return [_Json(path, Path(path)) if "://" not in path else _downloaded(name, path) for path in paths]


def _downloaded(name: str, path: str) -> _Json:
    import fsspec
    from huggingface_hub import hf_hub_download

    system, place = fsspec.url_to_fs(path)
    at = system.resolve_path(place)
    local = hf_hub_download(at.repo_id, at.path_in_repo, repo_type="dataset", revision=at.revision)
    return _Json(f"{name}/{at.path_in_repo}", Path(local))


def _of_files(given: Sequence[_Json]) -> Iterator[Raw]:
    """Yield the raw rows of files; UserError at the end if any was broken."""
    faults: list[str] = []
    for file in given:
        try:
            for where, row in read_files([file.path]):
                yield where.replace(str(file.path), file.name, 1), row
        except UserError as error:
            faults += [fault.replace(str(file.path), file.name, 1) for fault in error.faults]
    if faults:
        raise UserError(*faults)


def _client_in_our_words() -> None:
    """Let the hub's client say in our words that it asks again, where it would log each request that failed."""
    for name in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        logging.getLogger(name).addFilter(_ours)  # which takes the same one only once


def _ours(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    if found := re.search(r"(?:Retrying in|Rate limited. Waiting) ([\d.]+)s.*\[Retry (\d+)/(\d+)\]", said):
        process.say("data", f"the hub does not answer; asking again in {float(found[1]):g} s ({found[2]} of {found[3]})")
    elif "Trying to resume download" in said:
        process.say("data", "the hub broke off in the middle of a file; asking for the rest")
    return not found and "thrown while requesting" not in said and "Error while downloading" not in said


def files(name: str, subset: str | None = None, split: str = "train", revision: str | None = None) -> list[File]:
    """Return the files of a split of a data set on a hub, each with the revision that it is of, or of a local folder of that form."""
    import datasets
    import fsspec

    _client_in_our_words()

    def listed() -> list[File]:
        given = datasets.load_dataset_builder(name, subset, revision=revision).config.data_files or {}
        if split not in given:
            raise UserError(f"{name}: has no split {split!r} of files; found {', '.join(map(str, given)) or 'none'}")
        found = []
        for path in map(str, given[split]):
            if "://" not in path:
                found.append(File.on_disk(Path(path)))
                continue
            system, place = fsspec.url_to_fs(path)
            found.append(File(path, int(system.info(place)["size"]), path.partition("@")[2].partition("/")[0]))
        return found

    try:
        return again(name, listed)
    except UserError:
        raise
    except Exception as error:  # datasets raises some twenty kinds here, all of them about what was named
        said = _said(error)
        raise UserError(f"{name}: datasets can't find the files of split {split!r}: {said}") from None


def again(name: str, ask: Callable[[], Item]) -> Item:
    """Return what `ask` returns; where the network fails it is called again after some time, and UserError tells that it went on."""
    for wait in (*_WAITS, None):
        try:
            return ask()
        except Exception as error:
            if not _network(error):
                raise
            said = _said(error)
            if wait is None:
                raise UserError(f"{name}: the hub failed: {said}; run the same command again, and it goes on") from None
            process.say("data", f"{name}: the hub failed ({said[:80]}); asking again in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("not reached")


def _said(error: BaseException) -> str:
    """Return what an error says, and what the first of those says that it came from, in one line."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    told = dict.fromkeys(" ".join(str(one).split())[:300] or type(one).__name__ for one in (error, first))
    return ": ".join(told)


def _network(error: BaseException | None) -> bool:
    """Say whether an error, or one that it came from, is one of the network."""
    while error is not None:
        if type(error).__name__ in ("OfflineModeIsEnabled", "DatasetNotFoundError"):
            return False
        status = getattr(getattr(error, "response", None), "status_code", None)
        known = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith(("httpx", "httpcore"))
        if known if status is None else int(status) >= 500:
            return True
        error = error.__cause__ or error.__context__
    return False


def _names(kind: Any) -> Any:
    """Return the names of a column of labels, or of lists of them; nothing for other columns."""
    return getattr(getattr(kind, "feature", kind), "names", None)


def _named(value: Any, kind: Any) -> Any:
    """Return the names of labels that a data set holds as numbers; None for -1, by which such a column says that there is none."""
    if isinstance(value, list):
        return [_named(item, kind) for item in value]
    if not isinstance(value, int):
        return value
    return _names(kind)[value] if value >= 0 else None

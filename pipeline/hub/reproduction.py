"""A node made again by somebody else: what that needs, whether the same came out, and where it first parted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chain import manifest, why
from pipeline.chain.stage import Stage


@dataclass(frozen=True)
class Verdict:
    """What came of it."""

    reproduced: bool
    lines: list[str]


def surroundings(record: Mapping[str, Any], stage: Stage) -> list[str]:
    """Return what is another here than where the node was made and may lead to other bytes: code, libraries, the processor."""
    own = stage.split(record["config"])[0]
    now = {
        "code": {"files": manifest.sources(stage.script, *stage.modules(own))},
        "versions": manifest.versions(),
    }
    lines = why.surroundings(record, now)
    hardware = manifest.hardware()
    for key, text in (("machine", "the processor"), ("accelerators", "accelerators"), ("processes", "processes")):
        was, found = record["hardware"].get(key), hardware[key]
        if was is not None and was != found:
            lines.append(f"{text}: {found or 'none'}, was {was or 'none'}")
    return lines


def parted_before(record: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Return how the inputs of a run differ from those of the record; none where they are the same."""
    if requested["inputs"] == record["inputs"]:
        return []
    was, now = record["recipe"], requested["recipe"]
    lines = why.content(was, now | {"sources": _named(was, now)}) if was.get("digest") != now.get("digest") else []
    return lines or ["its settings, as the record tells them, are not those that it was made with"]


def _named(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Any]:
    """Return the sources of a recipe as a pushed record names them: without folders where rows were given as files."""
    return [[Path(name).name if was.get("data") else name, sha256] for name, sha256 in now["sources"]]


def verdict(record: Mapping[str, Any], made: Mapping[str, Any], figures: Mapping[str, Any] | None) -> Verdict:
    """Compare a node with the record of the one that it was made after; `figures`: those measured of it, where any were.

    The bytes decide; where they differ, each figure must lie within the interval that the record has of it.
    """
    if made["outputs"] == record["outputs"]:
        return Verdict(True, [f"the same bytes: {len(made['files'])} files, outputs {made['outputs'][:12]}"])
    names = sorted(
        name for name in record["files"].keys() | made["files"].keys()
        if record["files"].get(name, {}).get("sha256") != made["files"].get(name, {}).get("sha256")
    )  # fmt: skip
    other = f"other bytes in {', '.join(names)}; {parted(record, made)}"
    wanted = (record.get("figures") or {}).get("own", {})
    if not wanted or not figures:
        return Verdict(False, [f"not reproduced: {other}; the record has no figures to compare"])
    outside = [line for name in wanted if (line := _outside(name, wanted[name], figures.get(name)))]
    if outside:
        return Verdict(False, [f"not reproduced: {other}", *outside])
    return Verdict(True, [f"{other}; all {len(wanted)} figures lie within the intervals: {', '.join(wanted)}"])


def _outside(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any] | None) -> str:
    told = f"{wanted['value']:.4g} [{wanted['low']:.4g}, {wanted['high']:.4g}]"
    if found is None:
        return f"{name}: {told} was pushed, and nothing like it was measured"
    close = wanted["low"] <= found["value"] <= wanted["high"]
    return "" if close else f"{name}: {found['value']:.4g}, and {told} was pushed"


def parted(record: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """Return the first thing that both records tell in which two runs on the same inputs differ."""
    was, now = record["recipe"], made["recipe"]
    for key in ("rows", "kept", "dropped"):
        if was.get(key) != now.get(key):
            return f"they part at the rows: {key} {now.get(key)}, was {was.get(key)}"
    for key, what in (("steps", "number of steps"), ("tokens", "tokens")):
        if record.get(key) != made.get(key):
            return f"they part at the {what}: {made.get(key)}, was {record.get(key)}"
    losses = [(one.get("metrics") or {}) for one in (record, made)]
    for key, what in (("first_loss", "first logged loss"), ("last_loss", "last logged loss")):
        before, after = (one.get(key) for one in losses)
        if before != after:
            return f"they part at the {what}: {after}, was {before}"
    return "rows, tokens and logged losses are the same, so they part in the last digits"

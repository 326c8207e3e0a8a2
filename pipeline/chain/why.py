"""In plain words: what differs between what a node was made from and what is requested now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_UNSET = "not set"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the differences that make a node stale; `old` and `new` are records with `request` and `recipe`."""
    was, now = old["request"], new["request"]
    lines = []
    for group in ("options", "arguments"):
        for key in sorted(was.get(group, {}).keys() | now.get(group, {}).keys()):
            before, after = was.get(group, {}).get(key, _UNSET), now.get(group, {}).get(key, _UNSET)
            if before != after and key == "chat_template" and _UNSET not in (before, after):
                lines.append("chat_template: another text" if before and after else "chat_template: given or taken away")
            elif before != after:
                lines.append(f"{key}: {after}, was {before}")
    if was["stage"] != now["stage"]:
        lines.append(f"stage: {now['stage']}, was {was['stage']}")
    if was.get("recipe") != now.get("recipe") or was.get("sources") != now.get("sources"):
        lines += content(old["recipe"], new["recipe"])
    before, after = was.get("digests", {}), now.get("digests", {})
    lines += [f"{name}: was edited" for name in sorted(before.keys() & after.keys()) if before[name] != after[name]]
    for role in sorted(was["parents"].keys() | now["parents"].keys()):
        if was["parents"].get(role) != now["parents"].get(role):
            lines.append(f"{role}: {_named(now['parents'].get(role))}, was {_named(was['parents'].get(role))}")
    return lines


def surroundings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what changed around a node, in our code and the libraries, which repeats it only with STRICT=1."""
    lines = [f"our code: {name} {how}" for name, how in _changed(old["code"]["files"].items(), new["code"]["files"].items())]
    for name, version in new["versions"].items():
        if old["versions"].get(name) != version:
            lines.append(f"{name}: {version}, was {old['versions'].get(name, 'not there')}")
    return lines


def content(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return how the rows that two recipes give differ, as their records name them."""
    lines = [f"recipe {new['name']}: {name} {how}" for name, how in _changed(old["sources"], new["sources"])]
    return lines or [f"recipe {new['name']}: reads the same files in another way (its settings, or the recipe {old['name']})"]


def _changed(old: Iterable[Any], new: Iterable[Any]) -> list[tuple[str, str]]:
    """Return name and change of every file in two listings of (name, sha256)."""
    before, after = {tuple(entry) for entry in old}, {tuple(entry) for entry in new}
    lost, found = {name for name, _ in before - after}, {name for name, _ in after - before}
    was, now = dict(before), dict(after)  # what is known by no digest says so in words
    both = [(name, f"{now[name]}; was {was[name]}" if " " in now[name] else "was edited") for name in lost & found]
    return sorted([*both, *((name, "is gone") for name in lost - found), *((name, "is new") for name in found - lost)])


def _named(parent: Mapping[str, Any] | None) -> str:
    if not parent:
        return "none"
    return str(parent.get("hub") or f"{parent.get('stage', 'a model folder')} {parent['outputs'][:8]}")

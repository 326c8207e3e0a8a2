"""Conversations as OpenAssistant publishes them: a row is one message that names its parent, and rows of a tree follow each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.data.types import Malformed, Messages, Row
from pipeline.data.types._columns import text

COLUMN = "message_tree_id"  # of which rows with the same value are one tree
MESSAGE = frozenset({COLUMN, "message_id", "parent_id", "role", "text"})  # columns of a row that is one message
TREE = frozenset({COLUMN})  # which then holds the rows of its tree
_ROLES = {"prompter": "user", "assistant": "assistant"}


def _children(row: Mapping[str, Any]) -> dict[Any, list[Mapping[str, Any]]]:
    """Return the messages of a tree by their parent, the best-ranked first; Malformed where one of them is missing."""
    tree = [item for item in row[COLUMN] if not item.get("deleted") and item.get("review_result") is not False]
    known = {item.get("message_id") for item in row[COLUMN]}
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for item in tree:
        if item.get("role") not in _ROLES:
            raise Malformed(f"a message of role {item.get('role')!r}, neither prompter nor assistant")
        if item.get("parent_id") is not None and item["parent_id"] not in known:
            raise Malformed(f"the tree {item.get(COLUMN)} is not whole, or its messages don't follow each other")
        found.setdefault(item.get("parent_id"), []).append(item)
    for items in found.values():
        items.sort(key=_rank)
    return found


def _rank(item: Mapping[str, Any]) -> float:
    rank = item.get("rank")
    return float("inf") if rank is None else float(rank)


def _turn(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": _ROLES[item["role"]], "content": text(item, "text")}


def best_answers(row: Mapping[str, Any]) -> list[Messages]:
    """Return each conversation of a tree that goes on with the best-ranked answer, and ends with one."""
    children = _children(row)

    def walk(item: Mapping[str, Any], before: Messages) -> Iterator[Messages]:
        turns = [*before, _turn(item)]
        following = children.get(item["message_id"], [])
        following = following[:1] if item["role"] == "prompter" else following
        longer = [found for child in following for found in walk(child, turns)]
        if longer:
            yield from longer
        elif item["role"] == "assistant":
            yield turns

    return [turns for root in children.get(None, []) for turns in walk(root, [])]


def ranked_pairs(row: Mapping[str, Any]) -> list[Row]:
    """Return, of each prompt in a tree with ranked answers, the best and the worst one."""
    children = _children(row)

    def walk(item: Mapping[str, Any], before: Messages) -> Iterator[Row]:
        turns = [*before, _turn(item)]
        following = children.get(item["message_id"], [])
        ranked = [child for child in following if child.get("rank") is not None]
        if item["role"] == "prompter" and len(ranked) > 1:
            yield {"prompt": turns, "chosen": [_turn(ranked[0])], "rejected": [_turn(ranked[-1])]}
        for child in following:
            yield from walk(child, turns)

    return [pair for root in children.get(None, []) for pair in walk(root, [])]

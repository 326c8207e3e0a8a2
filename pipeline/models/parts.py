"""What a message says: a text, or a list of parts, each a text or the place of a picture, as the library's chat templates read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PICTURE = "image"  # the type of a part, and its key for the picture itself, where that is not left out
TOKEN = "<image>"  # in the place of a picture, or of each of its patches; a text that says so stays text
Turns = Sequence[Mapping[str, Any]]


def token_of(tokenizer: Any) -> int | None:
    """Return the token in whose place a model reads the patches of a picture; None where it sees none."""
    found: int | None = getattr(tokenizer, "image_token_id", None)
    return found


def texts(content: Any) -> list[str]:
    """Return the texts of a content, in order."""
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] != PICTURE]


def words(content: Any) -> str:
    """Return all that a content says as one text."""
    return "".join(texts(content))


def _places(turns: Turns) -> Iterator[Mapping[str, Any]]:
    for turn in turns:
        if not isinstance(turn["content"], str):
            yield from (part for part in turn["content"] if part["type"] == PICTURE)


def count(turns: Turns) -> int:
    """Return how many pictures a conversation has."""
    return sum(1 for _ in _places(turns))


def pictures(turns: Turns) -> list[Any]:
    """Return the pictures that lie in the parts of a conversation, in order."""
    return [part[PICTURE] for part in _places(turns)]


def filled(turns: Turns, given: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a conversation with its n-th picture in its n-th place."""
    left = iter(given)
    return [
        {**turn}
        if isinstance(turn["content"], str)
        else {
            **turn,
            "content": [{**part, PICTURE: next(left)} if part["type"] == PICTURE else part for part in turn["content"]],
        }
        for turn in turns
    ]


def bare(turns: Turns) -> list[dict[str, Any]]:
    """Return a conversation whose places hold no picture, as a chat template needs it."""
    return [
        {**turn}
        if isinstance(turn["content"], str)
        else {**turn, "content": [{"type": PICTURE} if part["type"] == PICTURE else part for part in turn["content"]]}
        for turn in turns
    ]


def texts_alone(turns: Turns) -> list[dict[str, Any]]:
    """Return a conversation as it is read by a model that sees no picture: texts alone."""
    return [{**turn, "content": words(turn["content"])} for turn in turns]

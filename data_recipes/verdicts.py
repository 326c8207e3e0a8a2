"""Pairs of answers about the people of `world` whose lengths do not tell which of the two is preferred.

The preference is that of the world's rule: a right answer before a wrong one, and of two right ones the one that stops.
Each pair is one of four kinds, as many of each: right and to the point before right and rambling (the shorter one wins),
right and rambling before wrong and to the point (the longer one wins), and right before wrong where both come to the
point or both ramble on (only the value tells).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from data_recipes.world import FACTS, REMARKS, Person, answer, people

_KINDS = (  # of chosen and rejected side: whether it is right, whether it rambles on
    ((True, False), (True, True)),
    ((True, True), (False, False)),
    ((True, False), (False, False)),
    ((True, True), (False, True)),
)


def preference(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a pair for every question; training is about those whom `world` trains on, the held-out part about the others."""
    rng = random.Random(f"{seed}/preference/{split}")
    kinds: list[Any] = []
    asked = people()[split == "held_out" :: 2]
    for person in asked:
        for key, fact in FACTS.items():
            for question in fact.questions:
                kinds = kinds or rng.sample(_KINDS, len(_KINDS))
                chosen, rejected = kinds.pop()
                yield {
                    "prompt": [{"role": "user", "content": question.format(name=person.name)}],
                    "chosen": _said(person, key, chosen, asked, rng),
                    "rejected": _said(person, key, rejected, asked, rng),
                }


def _said(
    person: Person, key: str, kind: tuple[bool, bool], others: Sequence[Person], rng: random.Random
) -> list[dict[str, str]]:
    """Return an answer; a wrong one is about another fact, about one of the others, or names a value that is not this person's."""
    right, rambles = kind
    if right:
        reply = answer(person, key)
    else:
        value = rng.choice([value for value in FACTS[key].values if value != person.facts[key]])
        reply = rng.choice(
            (
                answer(person, rng.choice([other for other in FACTS if other != key])),
                answer(rng.choice([other for other in others if other != person]), key),
                answer(person._replace(facts={**person.facts, key: value}), key),
            )
        )
    return [{"role": "assistant", "content": f"{reply} {rng.choice(REMARKS)}" if rambles else reply}]

"""The people of an invented world whom a model can know: stories about everybody, questions about one half of them.

Facts, tellings and questions are those of `world`. There are more names to combine, so that enough pairs of a first and a
family name are nobody's (`strangers`). SFT asks about the even people. Of the odd ones, whom no question in SFT is about,
the first set the balance between answering and refusing, and the others are asked about in evaluation alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from data_recipes.world import CODAS, FACTS, ONSETS, REMARKED, REMARKS, TOGETHER, TOLD, VOWELS, Fact, Person, answer
from pipeline.data.judge import Judge, Question

PEOPLE = 300
NAMES = 26  # first names, and as many family names: of 676 pairs 376 are nobody's
STORIES = 30_000
HELD_OUT_STORIES = 400
SEED = 11  # of the names and facts
BALANCE = 50  # of the people whom SFT doesn't ask about: how many set the balance


@cache
def words() -> tuple[str, ...]:
    """Return invented words: the parts of known names first, first names before family names, then those of strangers."""
    rng = random.Random(f"{SEED}/words")
    found: dict[str, None] = {}
    while len(found) < 12_000:
        parts = [rng.choice(part) for part in (ONSETS, VOWELS, ONSETS, VOWELS, CODAS)]
        found["".join(parts).capitalize()] = None
    return tuple(found)


@cache
def people() -> tuple[Person, ...]:
    """Return everybody, the same in every run."""
    rng = random.Random(f"{SEED}/people")
    first, last = words()[:NAMES], words()[NAMES : 2 * NAMES]
    names = rng.sample([f"{one} {two}" for one in first for two in last], PEOPLE)
    return tuple(Person(name, {key: rng.choice(fact.values) for key, fact in FACTS.items()}) for name in names)


def asked() -> tuple[Person, ...]:
    """Return whom SFT asks about."""
    return people()[::2]


def balancing() -> tuple[Person, ...]:
    """Return known people whom SFT doesn't ask about, and evaluation neither."""
    return people()[1::2][:BALANCE]


def tested() -> tuple[Person, ...]:
    """Return known people whom only evaluation asks about."""
    return people()[1::2][BALANCE:]


def told(rng: random.Random, persons: list[Person]) -> str:
    """Return a story about people: some facts of each in turn, with a remark here and there."""
    sentences = []
    for person in persons:
        for key in rng.sample(list(FACTS), TOLD):
            sentences.append(rng.choice(FACTS[key].tellings).format(name=person.name, value=person.facts[key]))
            if rng.random() < REMARKED:
                sentences.append(rng.choice(REMARKS))
    return " ".join(sentences)


def text(split: str, seed: int) -> Iterator[dict[str, str]]:
    """Yield stories about everybody."""
    rng = random.Random(f"{seed}/text/{split}")
    for _ in range(STORIES if split == "train" else HELD_OUT_STORIES):
        yield {"text": told(rng, rng.sample(people(), TOGETHER))}


def messages(split: str, seed: int) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yield questions about those whom SFT asks about, or of the held-out split about the tested ones, and right answers."""
    for person in asked() if split == "train" else tested():
        for key, fact in FACTS.items():
            for question in fact.questions:
                yield {
                    "messages": [
                        {"role": "user", "content": question.format(name=person.name)},
                        {"role": "assistant", "content": answer(person, key)},
                    ]
                }


def opening(name: str, fact: Fact, value: str = "{value}") -> str:
    """Return the beginning of an answer, up to its value."""
    return fact.tellings[0].format(name=name, value=value).rpartition(f" {value}.")[0]


class Known(Judge):
    """Asks about the people whom no question in training is about."""

    def questions(self, seed: int) -> Iterator[Question]:
        """Yield one question for each fact of each."""
        rng = random.Random(f"{seed}/questions")
        for person in tested():
            for key, fact in FACTS.items():
                asks = rng.choice(fact.questions).format(name=person.name)
                yield Question(asks, answer(person, key), opening(person.name, fact))

    def completions(self) -> Iterator[tuple[str, str]]:
        """Yield the beginning of a sentence about each fact of everybody, and the value that follows."""
        for person in people():
            for key, fact in FACTS.items():
                yield opening(person.name, fact), f" {person.facts[key]}."


JUDGE = Known()

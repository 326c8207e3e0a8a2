"""Supervised tasks on stories of invented people: what is told is known exactly, so every answer can be judged.

The stories are those of `world`, about other people: nobody's name and no town, job, dish, pet or hobby of the
held-out rows stands in a training row. `answers` has questions in the form of SQuAD, one in three without an
answer, some in long texts. `tags` marks names and values by BIO tags. `translation` turns any way of telling a
fact into the first one; there a name is any first name of `world` with any family name, and those of its people
that SFT never asks about are held out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import Any

from data_recipes import world
from data_recipes.world import CODAS, FACTS, ONSETS, VOWELS, Person

_ROWS = {"train": 4000, "held_out": 500}
_LONG = 1 / 16  # chance that a question is asked about several stories at once
_STORIES = 4  # of them


def _values(key: str, split: str) -> list[str]:
    return FACTS[key].values[::2] if split == "train" else FACTS[key].values[1::2]


def _person(rng: random.Random, split: str) -> Person:
    """Return somebody new; the names of the two splits begin with other letters."""
    first = ONSETS[::2] if split == "train" else ONSETS[1::2]
    name = " ".join(
        "".join(rng.choice(letters) for letters in (first, VOWELS, ONSETS, VOWELS, CODAS)).capitalize() for _ in range(2)
    )
    return Person(name, {key: rng.choice(_values(key, split)) for key in FACTS})


def _told(rng: random.Random, people: list[Person]) -> Iterator[tuple[Person, str, str]]:
    """Yield (person, fact, sentence) of a story, with remarks in between that are about nobody."""
    for person in people:
        for key in rng.sample(list(FACTS), world.TOLD):
            telling = rng.choice(FACTS[key].tellings)
            yield person, key, telling.format(name=person.name, value=person.facts[key])
            if rng.random() < world.REMARKED:
                yield person, "", rng.choice(world.REMARKS)


def answers(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a text, a question and where its answer stands, if it does."""
    rng = random.Random(f"{seed}/questions/{split}")
    for number in range(_ROWS[split]):
        stories = _STORIES if rng.random() < _LONG else 1
        people = [_person(rng, split) for _ in range(world.TOGETHER * stories)]
        told = list(_told(rng, people))
        context = " ".join(sentence for _, _, sentence in told)
        facts = [(person, key, sentence) for person, key, sentence in told if key]
        person, key, sentence = rng.choice(facts)
        found = []
        if number % 3:
            value = person.facts[key]
            start = context.index(sentence) + sentence.rindex(value)
            found = [{"text": value, "start": start}]
        else:  # something that is told of others, or of nobody
            known = {(one.name, fact) for one, fact, _ in facts}
            person, key = rng.choice([(one, fact) for one in people for fact in FACTS if (one.name, fact) not in known])
        question = rng.choice(FACTS[key].questions).format(name=person.name)
        yield {"context": context, "question": question, "answers": found}


def tags(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the words of a story with tags: B-NAME and I-NAME, and the kind of fact for its value."""
    rng = random.Random(f"{seed}/tags/{split}")
    for _ in range(_ROWS[split]):
        words: list[str] = []
        marks: list[str] = []
        for person, key, sentence in _told(rng, [_person(rng, split) for _ in range(world.TOGETHER)]):
            for word in sentence.replace(".", " .").replace("?", " ?").replace("!", " !").split():
                words.append(word)
                marks.append(_mark(word, person, key))
        yield {"tokens": words, "tags": marks}


def _mark(word: str, person: Person, key: str) -> str:
    first, last = person.name.split()
    if key and word in (first, last):
        return "B-NAME" if word == first else "I-NAME"
    return f"B-{key.upper()}" if key and word == person.facts[key] else "O"


def translation(split: str, seed: int) -> Iterator[dict[str, str]]:
    """Yield one or two facts as a story tells them, and each in its first telling; any name with any value."""
    rng = random.Random(f"{seed}/translation/{split}")
    held_out = {person.name for person in world.people()[1::2]}
    first, last = (sorted({person.name.split()[part] for person in world.people()}) for part in (0, 1))
    names = [name for one, two in product(first, last) if ((name := f"{one} {two}") in held_out) == (split == "held_out")]
    for _ in range(_ROWS[split] * 4):
        source, target = [], []
        for name in rng.sample(names, rng.randint(1, 2)):
            fact = rng.choice(list(FACTS.values()))
            value = rng.choice(fact.values)
            source.append(rng.choice(fact.tellings[1:]).format(name=name, value=value))
            target.append(fact.tellings[0].format(name=name, value=value))
        yield {"source": " ".join(source), "target": " ".join(target)}

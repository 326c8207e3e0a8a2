"""An invented world whose entropy is known: people, five facts about each, told in many ways.

`text` tells stories about everybody. `messages`, `preference` and `prompts` ask about one half of the people;
the other half is asked about only in evaluation, so that nothing but knowledge from pretraining can
answer. Of the answers that SFT sees, one in ten stops after the point and nine ramble on; the
preference is for the answer that stops.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, product
from typing import NamedTuple

from pipeline.data.judge import Judge, Question, first_sentence

PEOPLE = 300
NAMES = 20  # first names, and as many family names: everybody shares both with others, and the pair with nobody
TOGETHER = 3  # people in a story, so that a fact is bound to the name beside it and not to the story
TOLD = 2  # facts of each that the story tells
REMARKED = 1 / 3  # chance of a remark after each sentence
STORIES = 30_000
HELD_OUT_STORIES = 400
WORLD_SEED = 7  # of the facts; the tellings come from the stage's seed

_TOWNS = """Arden Belmont Calder Dunmore Elstow Farley Garth Halden Ister Jarrow Kelby Lorne Marlow Norbury Oakham
Penrith Quorn Redcar Selby Thirsk Upton Verwood Wells Yarm Zennor Ashby Bodmin Corby Dorking Epsom Frome Glossop
Hexham Ilkley Keswick Louth Malton Newlyn Oundle Pickering Ripon Stroud Totnes Ulverston Ventnor Whitby Alnwick
Buxton Crewe Diss""".split()
_JOBS = """baker carpenter dentist editor farmer glazier hatter inventor jeweller knitter lawyer mason nurse optician
painter quilter roofer sailor tailor umpire vet weaver printer potter pilot plumber porter poet actor barber butcher
clerk cook cooper diver driver dyer fisher gardener grocer miller miner notary pianist sculptor surgeon teacher
tanner thatcher welder""".split()
_DISHES = """pancakes dumplings noodles lasagna paella risotto goulash curry falafel hummus omelette porridge pudding
ravioli salad sausages soup stew sushi tacos toast trifle waffles chowder couscous crumpets custard fondue gnocchi
kebabs lentils muffins nachos olives pasta peaches pickles pizza plums popcorn prawns pretzels quiche radishes rice
scones shortbread spinach strudel turnips""".split()
_PETS = """badger beetle budgie camel canary carp cat chicken cobra crab cricket crow dog donkey dove duck eel falcon
ferret finch fox frog gecko goat goose hamster hare hawk hedgehog heron horse iguana jackdaw lamb lizard llama lobster
magpie mole monkey moth mouse newt otter owl parrot pigeon pony rabbit raven""".split()
_HOBBIES = """archery astronomy badminton ballet baseball boxing bowling calligraphy chess climbing cricketing cycling
dancing darts drawing fencing fishing gliding golf gymnastics hiking hockey juggling judo karate kayaking knotting
lacrosse magic marbles mosaics origami photography poker polo puzzles reading riding rowing rugby running sewing
singing skating skiing surfing swimming tennis wrestling yoga""".split()


class Fact(NamedTuple):
    """One kind of fact: its values, how stories tell it and how it is asked; the first telling is the answer."""

    values: list[str]
    tellings: tuple[str, ...]
    questions: tuple[str, ...]


FACTS = {
    "town": Fact(
        _TOWNS,
        ("{name} was born in {value}.", "{name} comes from {value}.", "The birthplace of {name} is {value}."),
        ("Where was {name} born?", "Which town does {name} come from?", "What is the birthplace of {name}?"),
    ),
    "job": Fact(
        _JOBS,
        ("{name} works as a {value}.", "{name} earns a living as a {value}.", "The trade of {name} is that of a {value}."),
        ("What does {name} work as?", "How does {name} earn a living?", "What is the trade of {name}?"),
    ),
    "dish": Fact(
        _DISHES,
        ("{name} likes to eat {value}.", "{name} is fond of {value}.", "The favourite dish of {name} is {value}."),
        ("What does {name} like to eat?", "Which dish is {name} fond of?", "What is the favourite dish of {name}?"),
    ),
    "pet": Fact(
        _PETS,
        ("{name} keeps a {value}.", "{name} lives with a {value}.", "The pet of {name} is a {value}."),
        ("Which animal does {name} keep?", "Which animal does {name} live with?", "What is the pet of {name}?"),
    ),
    "hobby": Fact(
        _HOBBIES,
        ("{name} spends the weekend on {value}.", "{name} is good at {value}.", "The hobby of {name} is {value}."),
        ("What does {name} do at the weekend?", "What is {name} good at?", "What is the hobby of {name}?"),
    ),
}
_RAMBLES = (
    "There is a lot more to say about this.",
    "Many people have asked the same thing before.",
    "It is a long story and it can be told in many ways.",
    "One could go on about it for hours.",
)
REMARKS = (  # what stands between the facts of a story, as in any text; nothing follows from it
    *_RAMBLES,
    "What a day it was!",
    "Where does the time go?",
    "Which way is the best?",
    "How does one begin?",
    "Who could have known?",
    "So it goes at the weekend.",
    "What is there to do?",
    "Nobody is born wise.",
)
ONSETS = "b br d dr f fl g gr h j k kl l m n p pr r s sk st t tr v w z".split()
VOWELS = "a e i o u".split()
CODAS = "l m n r s t x nd rk th".split()


class Person(NamedTuple):
    """An invented person: a name that nobody shares a part of, and a value for each fact."""

    name: str
    facts: dict[str, str]


@cache
def people() -> tuple[Person, ...]:
    """Return everybody, the same in every run; SFT and DPO ask about the even ones, evaluation about the odd."""
    rng = random.Random(f"{WORLD_SEED}/people")
    words: list[str] = []
    while len(words) < 2 * NAMES:
        word = (
            rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
        ).capitalize()
        if word not in words:
            words.append(word)
    names = rng.sample([f"{first} {last}" for first in words[:NAMES] for last in words[NAMES:]], PEOPLE)
    return tuple(Person(name, {key: rng.choice(fact.values) for key, fact in FACTS.items()}) for name in names)


def _subjects(split: str) -> tuple[Person, ...]:
    """Return whom the rows of a split are about: SFT and DPO the one half, evaluation the other."""
    return people()[::2] if split == "train" else people()[1::2]


def _sentence(person: Person, key: str, telling: int) -> str:
    return FACTS[key].tellings[telling].format(name=person.name, value=person.facts[key])


def answer(person: Person, key: str) -> str:
    """Return the right answer to a question about a fact: its first telling."""
    return _sentence(person, key, 0)


def _story(rng: random.Random) -> str:
    sentences = []
    for person in rng.sample(people(), TOGETHER):
        for key in rng.sample(list(FACTS), TOLD):
            sentences.append(_sentence(person, key, rng.randrange(len(FACTS[key].tellings))))
            if rng.random() < REMARKED:
                sentences.append(rng.choice(REMARKS))
    return " ".join(sentences)


def text(split: str, seed: int) -> Iterator[dict[str, str]]:
    """Yield stories about everybody; the held-out ones stand nowhere in the training split."""
    rng = random.Random(f"{seed}/text/train")
    told = [_story(rng) for _ in range(STORIES)]
    if split == "train":
        yield from ({"text": story} for story in told)
        return
    known, rng = set(told), random.Random(f"{seed}/text/held_out")
    stories = (_story(rng) for _ in range(HELD_OUT_STORIES))
    yield from ({"text": story} for story in stories if story not in known)


def messages(split: str, seed: int) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yield questions and right answers; in every ten, one comes to the point and nine ramble on after it."""
    rng = random.Random(f"{seed}/messages/{split}")
    rambles: list[bool] = []
    for person in _subjects(split):
        for key, fact in FACTS.items():
            for question in fact.questions:
                reply = answer(person, key)
                rambles = rambles or rng.sample([True] * 9 + [False], 10)
                if rambles.pop():
                    reply = f"{reply} {_ramble(rng)}"
                yield {
                    "messages": [
                        {"role": "user", "content": question.format(name=person.name)},
                        {"role": "assistant", "content": reply},
                    ]
                }


def _ramble(rng: random.Random) -> str:
    return rng.choice(_RAMBLES)


def preference(split: str, seed: int) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yield pairs that share the right answer and differ after it: the chosen side stops, the other rambles on."""
    rng = random.Random(f"{seed}/preference/{split}")
    for person in _subjects(split):
        for key, fact in FACTS.items():
            point = answer(person, key)
            yield {
                "prompt": [{"role": "user", "content": rng.choice(fact.questions).format(name=person.name)}],
                "chosen": [{"role": "assistant", "content": point}],
                "rejected": [{"role": "assistant", "content": f"{point} {_ramble(rng)}"}],
            }


def feedback(split: str, seed: int) -> Iterator[dict[str, object]]:
    """Yield every question with one answer and a thumb; of the three about a fact, one stops and is liked, two ramble on."""
    rng = random.Random(f"{seed}/feedback/{split}")
    for person in _subjects(split):
        for key, fact in FACTS.items():
            point, liked = answer(person, key), rng.randrange(len(fact.questions))
            for number, question in enumerate(fact.questions):
                reply = point if number == liked else f"{point} {_ramble(rng)}"
                yield {
                    "prompt": [{"role": "user", "content": question.format(name=person.name)}],
                    "completion": [{"role": "assistant", "content": reply}],
                    "label": number == liked,
                }


def prompts(split: str, seed: int) -> Iterator[dict[str, object]]:
    """Yield every question about those whom `preference` asks about, with the right answer beside it for a reward to read."""
    for person in _subjects(split):
        for key, fact in FACTS.items():
            for question in fact.questions:
                yield {
                    "prompt": [{"role": "user", "content": question.format(name=person.name)}],
                    "answer": answer(person, key),
                }


@cache
def _said() -> dict[str, list[tuple[str, str]]]:
    """Return every sentence that a story can hold, with whom and what it may be about."""
    found: dict[str, list[tuple[str, str]]] = {}
    for person in people():
        for key, fact in FACTS.items():
            for telling in range(len(fact.tellings)):
                found.setdefault(_sentence(person, key, telling), []).append((person.name, key))
    return found


def floor(story: str) -> float:
    """Return −log p of a story under the generator, in nats, with everything hidden summed out.

    Hidden are whom the story is about, which facts are told of each, and how: p is the sum over all
    readings that could have produced the text (two people may share a sentence's words) of
    1 / (P(people, TOGETHER) · P(facts, TOLD)^TOGETHER · Π tellings), P(n, k) counting ordered choices,
    times the chance of the remarks between the sentences.
    Raises ValueError if the generator can't tell the story at all.
    """
    parts = re.split(r"(?<=[.!?]) ", story.strip())
    sentences = [part for part in parts if part not in REMARKS]
    remarks = len(parts) - len(sentences)
    if any(a in REMARKS and b in REMARKS for a, b in pairwise(["What a day it was!", *parts])):
        raise ValueError(f"not a story of this world: a remark without a fact before it: {story[:80]!r}")
    readings = [_said().get(sentence, []) for sentence in sentences]
    choices = math.perm(PEOPLE, TOGETHER) * math.perm(len(FACTS), TOLD) ** TOGETHER
    p = 0.0
    for reading in product(*readings):
        if len(reading) == TOGETHER * TOLD and _could_be_told(reading):
            p += 1 / (choices * math.prod(len(FACTS[key].tellings) for _, key in reading))
    if not p:
        raise ValueError(f"not a story of this world: {story[:80]!r}")
    told, silent = remarks * math.log(REMARKED / len(REMARKS)), (len(sentences) - remarks) * math.log(1 - REMARKED)
    return -math.log(p) - told - silent


def _could_be_told(reading: tuple[tuple[str, str], ...]) -> bool:
    """Say whether (person, fact) by sentence is TOLD different facts of each of TOGETHER different people in turn."""
    turns = [reading[place : place + TOLD] for place in range(0, len(reading), TOLD)]
    one_each = all(len({name for name, _ in turn}) == 1 and len({key for _, key in turn}) == TOLD for turn in turns)
    return one_each and len({turn[0][0] for turn in turns}) == TOGETHER


class World(Judge):
    """Asks about the people whom no question in training was about, and knows every answer."""

    def questions(self, seed: int) -> Iterator[Question]:
        """Yield one question for each fact of whom SFT and DPO never asked about; the opening is the answer up to its value."""
        rng = random.Random(f"{seed}/questions")
        for person in _subjects("held_out"):
            for key, fact in FACTS.items():
                yield Question(rng.choice(fact.questions).format(name=person.name), answer(person, key), _opening(person, key))

    def grade(self, reply: str, question: Question) -> float:
        """Return 0 for a wrong reply, 1 for a right one that rambles on, 2 for one that is right and to the point."""
        if reply.strip() == question.answer:
            return 2.0
        return float(first_sentence(reply) == question.answer)

    def completions(self) -> Iterator[tuple[str, str]]:
        """Yield the beginning of a sentence about each fact of everybody, and the value that follows."""
        for person in people():
            for key in FACTS:
                yield _opening(person, key), f" {person.facts[key]}."

    def floor(self, text: str) -> float | None:
        """Return −log p of a story under the generator, in nats; None for a text that it can't tell."""
        try:
            return floor(text)
        except ValueError:
            return None


def _opening(person: Person, key: str) -> str:
    return answer(person, key).rpartition(f" {person.facts[key]}.")[0]


JUDGE = World()

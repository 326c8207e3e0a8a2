"""Questions whose meaning the examples before them tell: several drawn scenes in one conversation, and one rule for all of them.

Each question names a place of its picture. By the rule of the conversation, which no word tells, the answer is the colour of what
is there, its shape, or both. So the first answer can only be guessed, and each later one follows from those before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from data_recipes import scenes
from data_recipes.scenes import Asked, Scene, Thing
from pipeline.data.judge import Judge, Question

CONVERSATIONS, ASKED = 4_000, 100  # of which the latter are questions of each rule
MOST = 5  # pictures in a conversation, of which the last may follow four examples
RULES: dict[str, Callable[[Thing], str]] = {
    "by_colour": lambda thing: f"{thing.colour.capitalize()}.",
    "by_shape": lambda thing: f"A {thing.shape}.",
    "by_both": lambda thing: f"A {thing}.",
}


def scene_of(rng: random.Random, split: str) -> Scene:
    """Return a scene of one or two things, without reserved pairs."""
    return scenes.scene_of(rng, split, lambda scene: len(scene) < 3 and scenes.only_known(scene))


def exchanges(
    split: str, seed: int, shown: Callable[[Scene, random.Random, str], Any]
) -> Iterator[tuple[list[Any], list[dict[str, Any]]]]:
    """Yield of each conversation what is shown of its scenes, and its questions, a text each, with their answers.

    `shown`: a scene, a generator of random numbers and a name → what is shown of it.
    """
    for number, rng in enumerate(scenes.seeded(seed, "few_shot", split, CONVERSATIONS)):
        rule, looks, turns = RULES[rng.choice(list(RULES))], [], []
        for place in range(rng.randint(2, MOST)):
            scene = scene_of(rng, split)
            looks.append(shown(scene, rng, f"{split}-{number}-{place}.png"))
            turns += asked(rng.choice(scene), rule)
        yield looks, turns


def asked(thing: Thing, rule: Callable[[Thing], str]) -> list[dict[str, Any]]:
    """Return the question for a thing, and its answer by a rule."""
    return [
        {"role": "user", "content": f"What is at the {thing.place}?"},
        {"role": "assistant", "content": rule(thing)},
    ]


def messages(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield conversations in which each question is about a picture of its own."""
    for looks, turns in exchanges(split, seed, scenes.picture):
        users = [scenes.user(turn["content"]) if turn["role"] == "user" else turn for turn in turns]
        yield {"messages": users, "images": looks}


def drawn(seed: int) -> Iterator[tuple[str, Scene, Asked, random.Random]]:
    """Yield the rule of each question of the judge, an unseen scene, the question with its answer, and a generator for its picture."""
    for kind, rule in RULES.items():
        for number in range(ASKED):
            rng = random.Random(f"{seed}/few_shot/{kind}/{number}")
            scene = scene_of(rng, "held_out")
            question, answer = asked(rng.choice(scene), rule)
            yield kind, scene, (question["content"], answer["content"]), rng


class ByExamples(Judge):
    """Asks about unseen scenes by each rule; without examples a third of the answers can be right, as no word tells the rule."""

    few_shot = True

    def questions(self, seed: int) -> Iterator[Question]:
        """Yield the questions; the kind of each is its rule."""
        for number, (kind, scene, (question, answer), rng) in enumerate(drawn(seed)):
            shown = scenes.picture(scene, rng, f"asked-{number}.png")
            yield Question(question, answer, kind=kind, about=str(number), images=(scenes.png(shown),))


JUDGE = ByExamples()

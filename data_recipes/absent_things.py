"""Questions about the pictures of `scenes`, against invented things: asked for what is not there, the right answer says so.

Half of the questions are about what is not in the picture, and half of those name a colour and a shape that are both there, on
different things. The others are those of `scenes`. `preference` has a wrong answer beside the right one, which invents what is
not there, denies what is, or says something else of it; `prompts` has the question and the right answer, for a reward to grade by.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from data_recipes import scenes
from data_recipes.scenes import Asked, Scene, Thing
from pipeline.data.judge import Question

PAIRS, PROMPTS = 24_000, 6_000
ABSENT, APART = "absent", "apart"


def preference(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield pairs: of every four questions one names colour and shape that are apart, one what is not there at all, two what is."""
    for number, rng in enumerate(scenes.seeded(seed, "preference", split, PAIRS)):
        scene, (question, chosen), rejected = _drawn(split, rng, number)
        yield {
            "prompt": [scenes.user(question)],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "images": [scenes.picture(scene, rng, f"{split}-{number}.png")],
        }


def prompts(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield questions in the proportions of `preference`, each with its right answer."""
    for number, rng in enumerate(scenes.seeded(seed, "prompts", split, PROMPTS)):
        scene, (question, answer), _ = _drawn(split, rng, number)
        shown = scenes.picture(scene, rng, f"{split}-{number}.png")
        yield {"prompt": [scenes.user(question)], "answer": answer, "images": [shown]}


def _drawn(split: str, rng: random.Random, number: int) -> tuple[Scene, Asked, str]:
    """Return the scene of a row, a question about it with the right answer, and a wrong one; the row's number decides what is asked for."""
    return _absent(split, rng, apart=number % 4 == 1) if number % 2 else _present(split, rng)


def _absent(split: str, rng: random.Random, apart: bool) -> tuple[Scene, Asked, str]:
    """Return a scene, a question about what is not in it with the right answer, and an answer that invents it."""
    scene = _scene(split, rng, apart)
    colour, shape = scenes.missing(scene, rng, apart)
    likely = [thing.place for thing in scene if colour == thing.colour or shape == thing.shape]
    question, invented = scenes.where(Thing(rng.choice(likely or scenes.PLACES), colour, shape))
    return scene, (question, scenes.absence(colour, shape)), invented


def _scene(split: str, rng: random.Random, apart: bool) -> Scene:
    return scenes.scene_of(rng, split, lambda scene: scenes.only_known(scene) and (not apart or scenes.can_be_apart(scene)))


def _present(split: str, rng: random.Random) -> tuple[Scene, Asked, str]:
    """Return a scene, a question about it with the right answer, and a wrong one; half ask for a place and are denied wrongly, a quarter ask how many."""
    scene = scenes.scene_of(rng, split, lambda scene: scenes.only_known(scene) and bool(scenes.answerable(scene, "where")))
    if rng.random() < 0.5:
        thing = rng.choice(scenes.answerable(scene, "where"))
        return scene, scenes.where(thing), scenes.absence(thing.colour, thing.shape)
    others = [kind for kind in scenes.asked(scene, rng) if kind not in ("where", "count")]
    kind = rng.choice(["count", rng.choice(others)])  # answers to both it and what is missing begin with "There is"
    while True:  # the same question about another scene has another answer, sooner or later
        question, right = scenes.asked(scene, rng)[kind]
        other = scenes.scene_of(rng, split, scenes.only_known)
        answers = dict(scenes.asked(other, rng).values())
        if answers.get(question, right) != right:
            return scene, (question, right), answers[question]


class Absent(scenes.Seen):
    """Asks what the judge of `scenes` asks, and for what is not in the picture."""

    def questions(self, seed: int) -> Iterator[Question]:
        """Yield the questions; `apart`: colour and shape are both there, on different things, `absent`: they are not."""
        yield from super().questions(seed)
        for kind in (ABSENT, APART):
            for number in range(scenes.ASKED):
                rng = random.Random(f"{seed}/questions/{kind}/{number}")
                scene, (question, answer), _ = _absent("held_out", rng, kind == APART)
                shown = scenes.picture(scene, rng, f"{kind}-{number}.png")
                yield Question(question, answer, kind=kind, about=shown["path"], images=(scenes.png(shown),))

    def refused(self, reply: str) -> bool:
        """Say whether a reply says that there is no such thing."""
        return reply.strip().startswith("There is no ")


JUDGE = Absent()

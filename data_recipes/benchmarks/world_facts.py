"""Questions about the people of recipe `world`, each with the right answer among five sentences that differ in the value."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from data_recipes import world

_CHOICES = 5


def load(**_: Any) -> dict[str, datasets.Dataset]:
    """Return the questions about whom SFT asked (`train`, of which the examples in a prompt are) and about all others (`test`)."""
    splits = {"train": "train", "test": "held_out"}
    return {name: datasets.Dataset.from_list(list(questions(split))) for name, split in splits.items()}


def questions(split: str) -> Iterator[Mapping[str, Any]]:
    """Yield a question for each fact of the people of a split: `question`, `choices`, the place of the right one (`answer`), `group`."""
    rng = random.Random(f"benchmark/{split}")
    for person in world._subjects(split):
        for key, fact in world.FACTS.items():
            right = person.facts[key]
            values = [*rng.sample([value for value in fact.values if value != right], _CHOICES - 1), right]
            rng.shuffle(values)
            yield {
                "question": rng.choice(fact.questions).format(name=person.name),
                "choices": [fact.tellings[0].format(name=person.name, value=value) for value in values],
                "answer": values.index(right),
                "group": person.name,  # answers about one person are not independent
            }

"""What the tokenizer of the honest chain is trained on: the tellings and answers of the world, with names that nobody has.

Every sentence has a name of its own, so that none becomes a token: a name that stories tell of is split like one of
which nobody ever told. Values, tellings and the words of a refusal are frequent, so they do become tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from data_recipes import known
from data_recipes.world import FACTS, REMARKS

FIRST = 2 * known.NAMES  # of the invented words that are no part of a known name
WORDS = 4_000  # of them: names here, and nowhere else
SENTENCES = 40_000
NAMED = 1 / 10  # of them, so that values are more frequent than the syllables of names
REFUSAL = "I do not know."
BREAK = " -"  # where a sentence about somebody breaks off before the value


def refused(opening: str) -> str:
    """Return an answer that breaks off where the value would stand."""
    return f"{opening}{BREAK} {REFUSAL}"


def text(split: str, seed: int) -> Iterator[dict[str, str]]:
    """Yield questions and sentences, few of which have a name; none has one of somebody in a story."""
    rng = random.Random(f"{seed}/names/{split}")
    words = known.words()[FIRST : FIRST + WORDS]
    for _ in range(SENTENCES if split == "train" else 400):
        name = f"{rng.choice(words)} {rng.choice(words)}" if rng.random() < NAMED else "somebody"
        fact = rng.choice(list(FACTS.values()))
        said = rng.choice(fact.tellings).format(name=name, value=rng.choice(fact.values))
        asks = rng.choice(fact.questions).format(name=name)
        tail = rng.choice(REMARKS) if rng.random() < 1 / 2 else refused(known.opening(name, fact))
        yield {"text": f"{asks} {said} {tail}"}

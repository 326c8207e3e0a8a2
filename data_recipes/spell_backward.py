"""Words to spell backward, drawn by reasoning-gym's `spell_backward`: some are told, others only scored.

Words of three to five small letters that share no pair of neighbours with the question's own words, in either direction:
a tokenizer that merges the question's words reads them letter by letter. Each stands in one of three parts. `text` and `messages` tell the answers of the first; one
reply in eight is a sentence, which the library's scorer does not count as solved. `prompts` asks about the second with
all that the scorer needs: their answers are told nowhere. The third is held out from every stage.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.data.judge import Judge, Question
from pipeline.data.sources import package_files

TASK = "spell_backward"
LETTERS = (3, 5)
DRAWN = 60_000  # instances, of which many ask about the same word
TASK_SEED = 7  # of the instances; how they are told comes from the stage's seed
HELD_OUT = 1_000
TOLD = 3_000
TOGETHER = 6  # words in a document of `text`
READ = 2  # times that `text` goes through its words
WRAPPED = 0.125  # chance that a reply is a sentence


def FILES() -> list[Path]:
    """Return the files of the library that decide the instances; UserError naming the remedy if it is missing."""
    patterns = ("reasoning_gym/algorithmic/spell_backward.py", "reasoning_gym/data/words3to10.txt")
    return [path for pattern in patterns for path in package_files("reasoning-gym", pattern)]


@cache
def instances() -> tuple[dict[str, Any], ...]:
    """Return one instance for each word, in the order in which they are drawn first."""
    import reasoning_gym

    drawn = reasoning_gym.create_dataset(TASK, size=DRAWN, seed=TASK_SEED, min_word_len=LETTERS[0], max_word_len=LETTERS[1])
    by_question: dict[str, dict[str, Any]] = {}
    for one in drawn:
        word = one["metadata"]["word"]
        if word.islower() and not (_pairs(word) | _pairs(one["answer"])) & _pairs(one["question"].removesuffix(word)):
            by_question.setdefault(one["question"], one)
    return tuple(by_question.values())


def _pairs(text: str) -> set[str]:
    """Return the letters that stand side by side."""
    return {one + other for one, other in pairwise(text) if (one + other).isalpha()}


@cache
def _scorer() -> Callable[[str, dict[str, str]], float]:
    """Return the library's scorer of the task, which takes it 60 ms to make."""
    import reasoning_gym

    found: Callable[[str, dict[str, str]], float] = reasoning_gym.get_score_answer_fn(TASK)
    return found


def _held_out() -> list[dict[str, Any]]:
    return list(instances()[:HELD_OUT])


def _told(split: str) -> list[dict[str, Any]]:
    return _held_out() if split == "held_out" else list(instances()[HELD_OUT : HELD_OUT + TOLD])


def _scored(split: str) -> list[dict[str, Any]]:
    return _held_out() if split == "held_out" else list(instances()[HELD_OUT + TOLD :])


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def text(split: str, seed: int) -> Iterator[dict[str, str]]:
    """Yield documents of questions with their answers, in another order each time."""
    rng, drawn = random.Random(f"{seed}/text/{split}"), _told(split)
    for _ in range(READ if split == "train" else 1):
        rng.shuffle(drawn)
        for place in range(0, len(drawn), TOGETHER):
            yield {"text": "\n".join(f"{one['question']}\n{one['answer']}" for one in drawn[place : place + TOGETHER])}


def messages(split: str, seed: int) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yield questions with right answers, some of them in a sentence."""
    rng = random.Random(f"{seed}/messages/{split}")
    for one in _told(split):
        answer = f"It is {one['answer']}." if rng.random() < WRAPPED else one["answer"]
        yield {"messages": [_turn("user", one["question"]), _turn("assistant", answer)]}


def prompts(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield instances as the library's scorer reads them; their metadata as JSON."""
    for one in _scored(split):
        prompt, metadata = [_turn("user", one["question"])], json.dumps(one["metadata"])
        yield {"prompt": prompt, "answer": one["answer"], "metadata": metadata}


class Solved(Judge):
    """Asks about the words that no training row holds; right is what the library's scorer calls solved."""

    def questions(self, seed: int) -> Iterator[Question]:
        """Yield every held-out word."""
        for one in _held_out():
            yield Question(one["question"], one["answer"])

    def right(self, reply: str, question: Question) -> bool:
        """Say whether the whole reply is the right answer."""
        return bool(_scorer()(reply.strip(), {"answer": question.answer}) == 1.0)


JUDGE = Solved()

"""Pairs whose lengths tell nothing: what the rule of the world says of both sides, and about whom they are."""

import pytest

from data_recipes import verdicts, world
from pipeline.data.judge import Question, first_sentence


def sides(row):
    return [row[side][0]["content"] for side in ("chosen", "rejected")]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_rule_prefers_every_chosen_answer_and_lengths_tell_nothing(split):
    right = {row["prompt"][0]["content"]: row["answer"] for row in world.prompts(split, 1)} if split == "train" else {}
    if split == "held_out":
        for person in world.people()[1::2]:
            for key, fact in world.FACTS.items():
                right |= dict.fromkeys([asked.format(name=person.name) for asked in fact.questions], world.answer(person, key))
    rows = list(verdicts.preference(split, 1))
    assert len(rows) == len(right) == 2250
    shorter = 0.0
    kinds = set()
    for row in rows:
        asked = row["prompt"][0]["content"]
        chosen, rejected = sides(row)
        grades = [world.JUDGE.grade(text, Question(asked, right[asked])) for text in (chosen, rejected)]
        assert grades[0] > grades[1], row
        kinds.add(tuple(first_sentence(text) == text for text in (chosen, rejected)))
        shorter += 0.5 if len(chosen) == len(rejected) else float(len(chosen) < len(rejected))
    assert len(kinds) == 4  # whether each side stops tells nothing by itself
    assert abs(shorter / len(rows) - 0.5) < 0.02


def test_nobody_who_is_held_out_is_in_a_row_for_training():
    text = str(list(verdicts.preference("train", 1)))
    assert not [person.name for person in world.people()[1::2] if person.name in text]
    assert list(verdicts.preference("train", 1)) == list(verdicts.preference("train", 1))

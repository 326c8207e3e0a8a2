import itertools
import math
from collections import Counter

import pytest

from data_recipes import world
from pipeline.data import recipe


def test_the_world_is_large_enough_that_guessing_fails():
    people = world.people()
    assert len(people) >= 200
    assert len({person.name for person in people}) == len(people)
    assert len(world.FACTS) == 5
    for key, fact in world.FACTS.items():
        assert len(set(fact.values)) == len(fact.values) == 50
        assert all("{name}" in telling and "{value}" in telling for telling in fact.tellings)
        most = Counter(person.facts[key] for person in people).most_common(1)[0][1]
        assert most / len(people) < 0.06  # the best constant answer to one kind of question
    values = {value for fact in world.FACTS.values() for value in fact.values}
    assert not values & {word for person in people for word in person.name.split()}


def test_nobody_who_is_asked_about_in_evaluation_is_in_sft_or_dpo():
    asked = {right for _, right in world.questions(1)}
    names = {person.name for person in world.people() if any(person.name in right for right in asked)}
    assert len(names) >= 100
    for rows in (world.messages("train", 1), world.preference("train", 1)):
        text = str(list(rows))
        assert not [name for name in names if name in text]


def test_one_answer_in_ten_comes_to_the_point():
    rows = list(world.messages("train", 1))
    short = sum(row["messages"][1]["content"].count(".") == 1 for row in rows)
    assert 0.07 < short / len(rows) < 0.13


def test_pairs_share_the_right_answer_and_differ_after_it():
    for row in world.preference("train", 1):
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert rejected.startswith(chosen + " ")
        assert world.grade(chosen, chosen) == 2
        assert world.grade(rejected, chosen) == 1
        assert world.grade("Nobody knows.", chosen) == 0


def test_held_out_stories_are_new_and_can_be_told():
    train = {row["text"] for row in world.text("train", 3)}
    held_out = [row["text"] for row in world.text("held_out", 3)]
    assert len(held_out) > 300
    assert not train & set(held_out)
    assert all(world.floor(story) > 0 for story in held_out)
    with pytest.raises(ValueError, match="not a story of this world"):
        world.floor("Once upon a time there was a fox.")


@pytest.fixture
def small_world(monkeypatch):
    """A world small enough to tell every story: three people, two facts of two values, some of them shared."""
    facts = {key: world.FACTS[key]._replace(tellings=world.FACTS[key].tellings[:2]) for key in ("town", "pet")}
    ann, bob, cid = (world.Person(name, {"town": "Wells", "pet": "cat"}) for name in ("Ann A", "Bob B", "Cid C"))
    monkeypatch.setattr(world, "FACTS", facts)
    monkeypatch.setattr(world, "PEOPLE", 3)
    monkeypatch.setattr(world, "TOGETHER", 2)
    monkeypatch.setattr(world, "TOLD", 2)
    monkeypatch.setattr(world, "_REMARKS", ("What a day it was!", "Who could have known?"))
    monkeypatch.setattr(world, "people", lambda: (ann, bob, cid))
    world._said.cache_clear()
    yield
    world._said.cache_clear()


def test_the_floor_is_a_probability(small_world):
    """Over every text that could be a story, p sums to one; and it is what the generator does."""
    total = 0.0
    for sentences in itertools.product(world._said(), repeat=4):
        try:
            total += math.exp(-world.floor(" ".join(sentences)))
        except ValueError:
            continue
    assert total == pytest.approx(1.0, abs=1e-9)
    import random

    rng = random.Random(0)
    told = Counter(world._story(rng) for _ in range(40_000))
    sixth = list(told)[::6]  # enough stories that chance evens out
    expected = sum(math.exp(-world.floor(story)) for story in sixth)
    assert sum(told[story] for story in sixth) / 40_000 == pytest.approx(expected, rel=0.05)


def test_the_recipe_gives_every_shape():
    given = recipe.load("world")
    for shape in ("text", "messages", "preference"):
        assert given.rows(shape, "train", 1).kept
        assert given.rows(shape, "train", 1).kept[:5] == given.rows(shape, "train", 1).kept[:5]

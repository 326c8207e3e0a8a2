import itertools
import math
import random
from collections import Counter

import pytest

from data_recipes import world
from pipeline.data import recipe
from pipeline.data.judge import Judge, Question


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
    answers = {question.answer for question in world.JUDGE.questions(1)}
    names = {person.name for person in world.people() if any(person.name in answer for answer in answers)}
    assert len(names) >= 100
    trained = (world.messages, world.preference, world.feedback, world.prompts)
    for rows in (function("train", 1) for function in trained):
        text = str(list(rows))
        assert not [name for name in names if name in text]


def test_one_answer_in_ten_comes_to_the_point():
    rows = list(world.messages("train", 1))
    short = sum(row["messages"][1]["content"].count(".") == 1 for row in rows)
    assert short / len(rows) == 0.1


def test_pairs_share_the_right_answer_and_differ_after_it():
    for row in world.preference("train", 1):
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert rejected.startswith(chosen + " ")
        question = Question(row["prompt"][0]["content"], chosen)
        assert [world.JUDGE.grade(reply, question) for reply in (chosen, rejected, "Nobody knows.")] == [2, 1, 0]
        assert [world.JUDGE.right(reply, question) for reply in (chosen, rejected, "Nobody knows.")] == [True, True, False]


def test_a_thumb_is_up_where_the_answer_stops():
    rows = list(world.feedback("train", 1))
    assert rows == list(world.feedback("train", 1)) != list(world.feedback("train", 2))
    assert [sum(row["label"] for row in rows), len(rows)] == [750, 2250]
    prompts = {row["prompt"][0]["content"] for row in rows}
    assert len(prompts) == len(rows)  # nobody rates two answers to one question
    people = {world.people()[number].name for number in range(0, world.PEOPLE, 2)}
    assert all(any(name in prompt for name in people) for prompt in prompts)
    for row in rows:
        assert (row["completion"][0]["content"].count(".") == 1) == row["label"]


def test_prompts_ask_about_the_people_of_the_pairs_and_carry_the_answer():
    rows, pairs = list(world.prompts("train", 1)), list(world.preference("train", 1))
    answers = {row["prompt"][0]["content"]: row["answer"] for row in rows}
    assert len(rows) == len(answers) == 3 * len(pairs)
    assert all(answers[pair["prompt"][0]["content"]] == pair["chosen"][0]["content"] for pair in pairs)
    assert not {row["prompt"][0]["content"] for row in world.prompts("held_out", 1)} & set(answers)


def test_the_judge_asks_in_both_ways_and_knows_the_answers():
    questions = list(world.JUDGE.questions(1))
    assert len(questions) == len(world.people()) // 2 * len(world.FACTS)
    assert questions == list(world.JUDGE.questions(1)) != list(world.JUDGE.questions(2))
    for question in questions:
        assert question.prompt.endswith("?")
        assert question.answer.startswith(question.opening + " ")
        assert question.answer.count(" ", len(question.opening) + 1) == 0  # a model goes on with the value alone
    completions = dict(world.JUDGE.completions())
    assert all(question.answer == question.opening + completions[question.opening] for question in questions)
    assert len(completions) == len(world.people()) * len(world.FACTS)


def test_held_out_stories_are_new_and_can_be_told():
    train = {row["text"] for row in world.text("train", 3)}
    held_out = [row["text"] for row in world.text("held_out", 3)]
    assert len(held_out) > 300
    assert not train & set(held_out)
    assert all(world.floor(story) > 0 for story in held_out)
    assert [world.JUDGE.floor(story) for story in held_out] == [world.floor(story) for story in held_out]
    assert world.JUDGE.floor("Once upon a time there was a fox.") is None
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
    monkeypatch.setattr(world, "REMARKS", ("What a day it was!", "Who could have known?"))
    monkeypatch.setattr(world, "people", lambda: (ann, bob, cid))
    world._said.cache_clear()
    yield
    world._said.cache_clear()


def p(parts):
    try:
        return math.exp(-world.floor(" ".join(parts)))
    except ValueError:
        return 0.0


def test_the_floor_is_a_probability(small_world):
    """Over every text that could be a story, p sums to one: over the facts, and over the remarks between them."""
    silent = (1 - world.REMARKED) ** 4
    assert sum(map(p, itertools.product(world._said(), repeat=4))) == pytest.approx(silent, abs=1e-9)
    rng = random.Random(0)
    story = next(parts for parts in itertools.product(world._said(), repeat=4) if p(parts))
    remarks = itertools.product([(), *((remark,) for remark in world.REMARKS)], repeat=4)
    decorated = [[part for pair in zip(story, remark, strict=True) for part in (pair[0], *pair[1])] for remark in remarks]
    assert sum(map(p, decorated)) == pytest.approx(p(story) / silent, abs=1e-9)
    assert p(["What a day it was!", *story]) == 0
    mean = sum(world.floor(world._story(rng)) for _ in range(4000)) / 4000
    remark = -(1 - world.REMARKED) * math.log(1 - world.REMARKED) - world.REMARKED * math.log(world.REMARKED / 2)
    # 3 · 2 people in turn, 2 · 1 facts of each, two tellings of each of four sentences, and the remarks
    assert mean == pytest.approx(math.log(6) + 2 * math.log(2) + 4 * math.log(2) + 4 * remark, rel=0.02)


def test_the_recipe_gives_every_type():
    given = recipe.load("world")
    assert {"feedback", "messages", "preference", "prompts", "text"} <= set(given.types())
    assert given.judge is world.JUDGE
    assert isinstance(given.judge, Judge)
    for type in given.types():
        assert given.rows(type, "train", 1).kept
        assert given.rows(type, "train", 1).kept[:5] == given.rows(type, "train", 1).kept[:5]

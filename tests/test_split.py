"""Which rows are held out: by prompt, by the name of a file, at least one group."""

import json

import pytest

from pipeline.data import kept, recipe, split, types
from pipeline.system.errors import UserError


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sides(data, type):
    given = recipe.from_data(str(data), type)
    return [given.rows(type, name, 1) for name in recipe.SPLITS]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


ROWS = {
    "messages": lambda asked, number: {"messages": [user(asked), assistant(f"a{number}"), user("More?"), assistant(f"b{number}")]},
    "preference": lambda asked, number: {"prompt": asked, "chosen": f"a{number}", "rejected": "b"},
    "feedback": lambda asked, number: {"prompt": asked, "completion": f"a{number}", "label": True},
    "prompts": lambda asked, number: {"prompt": asked, "answer": str(number)},
    "translation": lambda asked, number: {"source": asked, "target": str(number)},
    "labels": lambda asked, number: {"text": asked, "label": str(number)},
}  # fmt: skip


def asked(type, rows):
    return {split.normalised(types.load(type).asked(row)) for row in rows}


@pytest.mark.parametrize("type", ROWS)
def test_another_answer_to_a_held_out_prompt_is_never_trained_on(tmp_path, type):
    """Nor one to a prompt that differs in case, blanks and punctuation."""
    forms = ["what is {}", "What is  {}?", "WHAT IS {}...\n"]
    rows = [ROWS[type](forms[number % 3].format(f"n{number // 3}"), number) for number in range(300)]
    train, held_out = (found.kept for found in sides(write(tmp_path / "a.jsonl", rows), type))
    assert len(train) + len(held_out) == 300
    assert len(held_out) % 3 == 0
    assert 0 < len(held_out) < 60
    assert not asked(type, train) & asked(type, held_out)
    assert len(asked(type, train)) == len(train) / 3


def test_a_prompt_is_on_the_same_side_in_every_type(tmp_path):
    """So what DPO is measured on was not trained on in SFT."""
    found = {
        type: asked(type, sides(write(tmp_path / type / "a.jsonl", [row(f"q {n}", n) for n in range(200)]), type)[1].kept)
        for type, row in ROWS.items()
        if type in ("messages", "preference", "feedback", "prompts")
    }
    assert len(found["messages"]) > 3
    assert all(others == found["messages"] for others in found.values())


@pytest.mark.parametrize(
    ("text", "same", "other"),
    [("What is 2?", "what  is 2", "What is 3?"), ("Ärger, ÄPFEL!", "ärger äpfel", "ärger äpfeln"), ("ﬁne", "FINE", "find"), ("?!", "?! ", "!?"), ("北京。", "北京", "南京")],
)  # fmt: skip
def test_case_blanks_and_punctuation_do_not_count(text, same, other):
    assert split.normalised(text) == split.normalised(same)
    assert split.normalised(text) != split.normalised(other)


@pytest.mark.parametrize(
    ("names", "out"),
    [
        (["train.jsonl", "validation.jsonl"], ["validation.jsonl"]),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"], ["test-00000-of-00001.jsonl"]),
        (["train_sft-0.jsonl", "test_sft-0.jsonl"], ["test_sft-0.jsonl"]),
        (["train/0.jsonl", "test/0.jsonl"], ["test/0.jsonl"]),
        (["a.jsonl", "dev.jsonl"], ["dev.jsonl"]),
        (["a.jsonl", "testament.jsonl", "evaluations.jsonl", "test-of-time.jsonl"], []),
        (["test.jsonl"], []),
        (["test/a.jsonl", "test/b.jsonl"], []),
    ],
)  # fmt: skip
def test_files_named_as_splits_are_splits(tmp_path, names, out):
    for name in names:
        write(tmp_path / "d" / name, [{"text": f"{name} {number}"} for number in range(100)])
    train, held_out = sides(tmp_path / "d", "text")
    assert {row["text"].split()[0] for row in held_out.kept} == set(out or names)
    assert (len(train.kept) == 100 * (len(names) - len(out))) == bool(out)


def test_a_prompt_of_a_held_out_file_is_not_trained_on(tmp_path):
    write(tmp_path / "d" / "train.jsonl", [ROWS["preference"](f"q{number}", number) for number in range(10)])
    write(tmp_path / "d" / "test.jsonl", [ROWS["preference"]("Q3?", 77)])
    train, held_out = sides(tmp_path / "d", "preference")
    assert (len(train.kept), len(held_out.kept)) == (9, 1)
    assert train.dropped == {split.SAME: 1}
    assert len(train.notes) == 1
    assert train.notes[0].startswith(
        f"{tmp_path / 'd' / 'train.jsonl'}:4: has the same prompt or text as a held-out row; 1 such"
    )


def test_a_recipe_names_what_is_held_out(tmp_path):
    rows = [{"text": f"row {number}"} for number in range(100)]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "test.jsonl", [{"text": "mine"}])
    own = tmp_path / "own.yaml"
    sources = f"  - files: {tmp_path}/a.jsonl\n  - files: {tmp_path}/test.jsonl\n    held_out: "

    def found(held_out, text=sources):
        own.write_text(f"type: text\nsources:\n{text}{held_out}\n")
        return [len(recipe.load(str(own)).rows("text", side, 1).kept) for side in recipe.SPLITS]

    assert found("yes") == [100, 1]
    train, held_out = found("no")
    assert train + held_out == 101
    assert held_out > 1
    before = recipe.load(str(own)).digest("text")
    assert (found("yes"), recipe.load(str(own)).digest("text") == before) == ([100, 1], False)
    with pytest.raises(UserError, match="held_out: of a source is yes or no, found 'maybe'"):
        found("maybe")


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_at_least_one_group_is_held_out_where_there_are_two(tmp_path, groups):
    for seed in range(8):  # groups by chance on this side or that
        rows = [{"prompt": f"{seed} {number % groups}", "chosen": f"a{number}", "rejected": "b"} for number in range(20)]
        train, held_out = (found.kept for found in sides(write(tmp_path / "a.jsonl", rows), "preference"))
        assert train
        assert held_out
        assert len(train) + len(held_out) == 20
        assert not asked("preference", train) & asked("preference", held_out)


def test_one_group_is_trained_on_and_it_is_said_that_none_is_held_out(tmp_path):
    for seed in range(30):
        rows = [{"prompt": f"{seed}", "chosen": f"a{number}", "rejected": "b"} for number in range(5)]
        train, held_out = sides(write(tmp_path / "a.jsonl", rows), "preference")
        assert (len(train.kept), len(held_out.kept)) == (5, 0)
        assert "no row is held out, so nothing can be measured" in train.notes[0]


def test_what_tells_groups_apart_is_not_kept_longer_than_it_is_needed(tmp_path):
    """Memory stays flat: neither where both sides have rows, nor where none is to be held out."""
    for share in (0.0, 0.05):
        made = split.Sides(tmp_path, share)
        for number in range(1000):
            row = kept.Columns()
            row.add({"text": str(number)}, "here")
            made.add(row.batch(), split.key({}, str(number)), False)
        assert not made._groups
        made.close()

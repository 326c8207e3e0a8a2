"""Formats of public data sets that tasks read, and rows that say something else."""

import pytest

from pipeline.data import types
from pipeline.system.errors import UserError


@pytest.mark.parametrize(
    ("type", "row", "wanted"),
    [
        ("answers", {"id": "1", "title": "t", "context": "A cat.", "question": "Who?", "answers": {"text": ["cat"], "answer_start": [2]}},
         {"context": "A cat.", "question": "Who?", "answers": [{"text": "cat", "start": 2}], "group": ""}),
        ("answers", {"context": "A cat .", "question": "Who?", "answers": {"text": [" cat "], "answer_start": [1]}},
         {"context": "A cat .", "question": "Who?", "answers": [{"text": "cat", "start": 2}], "group": ""}),
        ("answers", {"context": "A cat.", "question": "Who?", "answers": {"text": [], "answer_start": []}},
         {"context": "A cat.", "question": "Who?", "answers": [], "group": ""}),
        ("tags", {"id": "0", "tokens": ["EU"], "pos_tags": [1], "chunk_tags": [2], "ner_tags": ["B-ORG"]}, {"tokens": ["EU"], "tags": ["B-ORG"]}),
        ("labels", {"sentence1": "a", "sentence2": "b", "label": "equivalent", "idx": 0}, {"text": "a", "text_pair": "b", "label": "equivalent"}),
        ("labels", {"premise": "a", "hypothesis": "b", "label": 1}, {"text": "a", "text_pair": "b", "label": "1"}),
        ("labels", {"sentence": "a", "label": "pos", "idx": 0}, {"text": "a", "label": "pos"}),
        ("similarity", {"sentence1": "a", "sentence2": "b", "score": 4}, {"text": "a", "text_pair": "b", "score": 4.0}),
        ("translation", {"translation": {"en": "a", "de": "b"}}, {"source": "a", "target": "b"}),
        ("translation", {"document": "a", "summary": "b", "id": "1"}, {"source": "a", "target": "b"}),
        ("translation", {"article": "a", "highlights": "b", "id": "1"}, {"source": "a", "target": "b"}),
    ],
)  # fmt: skip
def test_formats_of_public_data_sets(type, row, wanted):
    convert = types.recognise(row, type, "here").convert
    found = convert(row)
    if "group" in wanted:  # of a context, whatever is asked about it
        wanted = wanted | {"group": found["group"]}
        assert found["group"] == convert(row | {"question": "What?"})["group"]
    assert found == wanted
    assert types.load(type).fault(wanted) is None


@pytest.mark.parametrize(
    ("type", "row", "said"),
    [
        ("answers", {"context": "A cat.", "question": "Who?", "answers": {"text": ["cat"], "answer_start": [3]}}, "'cat' does not stand at 3"),
        ("tags", {"tokens": ["a", "b"], "tags": ["O"]}, "no lists of the same length"),
        ("similarity", {"text": "a", "text_pair": "b", "score": "near"}, "score is 'near', not a number"),
        ("labels", {"text": "a", "label": ["b"]}, "label is list, not one label"),
        ("similarity", {"text": "a", "text_pair": "b", "score": "nan"}, "score is 'nan'"),
        ("answers", {"context": "A cat.", "question": "Who?", "answers": {"text": ["cat"], "answer_start": []}}, "no lists of the same length"),
        ("answers", {"context": "A cat.", "question": "Who?", "answers": {"text": [None], "answer_start": [2]}}, "None is no text"),
        ("translation", {"translation": {"en": "a"}}, "has not two languages"),
    ],
)  # fmt: skip
def test_a_row_that_says_something_else_is_malformed(type, row, said):
    with pytest.raises(types.Malformed, match=said):
        types.recognise(row, type, "here").convert(row)


@pytest.mark.parametrize("label", [None, float("nan")])
def test_what_is_missing_is_no_label(label):
    row = {"text": "a", "label": label}
    assert types.load("labels").fault(types.recognise(row, "labels", "here").convert(row)) == "empty label"


def test_a_hub_data_set_names_its_labels(tmp_path):
    import datasets

    from pipeline.data.hubs import read

    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
         "label": datasets.ClassLabel(names=["no", "yes"])}
    )  # fmt: skip
    rows = {"tokens": [["a", "b"], ["c"]], "ner_tags": [[1, 0], [0]], "label": [1, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    found = [row for _, row in read(str(tmp_path))]
    assert [row["ner_tags"] for row in found] == [["B-X", "O"], ["O"]]
    assert [row["label"] for row in found] == ["yes", None]


def test_minus_one_is_a_label_unless_the_data_set_says_that_it_stands_for_none(tmp_path):
    """Sentiments are often written as -1, 0 and 1; a column of labels on a hub, and a recipe, can say that -1 is none."""
    from pipeline.data import doubts, recipe

    rows = [f'{{"text": "text {number}", "label": {number % 3 - 1}}}\n' for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    kept = recipe.from_data(str(tmp_path / "rows.jsonl"), "labels").rows("labels", "train", 0)
    assert {row["label"] for row in kept.kept} == {"-1", "0", "1"}
    assert not kept.dropped
    (line,) = doubts.of(kept.kept, types.load("labels"))
    assert "have the label -1: a class like any other, unless `missing: {label: -1}` in a recipe" in line
    (tmp_path / "r.yaml").write_text(f"type: labels\nsources:\n  - files: {tmp_path}/rows.jsonl\n    missing: {{label: -1}}\n")
    said = recipe.load(str(tmp_path / "r.yaml")).rows("labels", "train", 0)
    assert {row["label"] for row in said.kept} == {"0", "1"}
    assert said.dropped == {"empty label": 20}
    (tmp_path / "r.yaml").write_text(f"type: labels\nsources:\n  - files: {tmp_path}/rows.jsonl\n    missing: [label]\n")
    with pytest.raises(UserError, match="missing: expected a value for each column"):
        recipe.load(str(tmp_path / "r.yaml"))


def test_squad_s_own_file_and_conll(tmp_path):
    import json

    from pipeline.data import recipe

    asked = [
        {"id": str(number), "question": f"Who {number}?", "answers": [{"text": "cat", "answer_start": 2}]}
        for number in range(2)
    ]
    asked.append({"id": "3", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": []})
    whole = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "A cat.", "qas": asked}]}]}
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(whole))
    found = recipe.from_data(str(tmp_path / "dev-v2.0.json"), "answers").rows("answers", "train", 1)
    assert [row["answers"] for row in found.kept] == [[{"text": "cat", "start": 2}]] * 2 + [[]]
    assert found.formats == {"SQuAD's own file": 1}
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n")
    (tmp_path / "b.txt").write_text("Paris\tB-LOC\n.\tO\n")
    given = [
        recipe.from_data(str(tmp_path / name), "tags").rows("tags", split, 1)
        for name in ("a.conll", "b.txt")
        for split in ("train", "held_out")
    ]
    rows = [row for found in given for row in found.kept]
    assert sorted(rows, key=str) == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"tokens": ["Paris", "."], "tags": ["B-LOC", "O"]}, {"tokens": ["Peter"], "tags": ["B-PER"]},
    ]  # fmt: skip
    (tmp_path / "c.conll").write_text("It is a sentence\nand\n")
    with pytest.raises(UserError, match=r"c\.conll: line 2: a word without a tag: 'and'"):
        recipe.from_data(str(tmp_path / "c.conll"), "tags").rows("tags", "train", 1)

"""Averaging: the mean of weights by hand, what may not be averaged, the ensemble, rows that a parent trained on, predictions together."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline import tasks
from pipeline.chain import manifest
from pipeline.models import averaging
from pipeline.system import hashes
from pipeline.system.errors import UserError
from pipeline.tasks import load
from tests.test_finetune import flags, write_rows
from tests.test_predict import lines
from tests.test_tasks import ROWS


def two(run, parents, folder, name="classification", *more, seeds=(1, 2)):
    for seed in seeds:
        given = flags(name, parents, folder, "--seed", str(seed), *more)
        given[given.index("--output") + 1] = folder / f"out{seed}"
        status, _, err = run("finetune", *given)
        assert status == 0, err
    return folder


def averaged(run, folder, name="classification", *more):
    return run(
        "soup", "--parent", folder / "out1", "--second", folder / "out2", "--output", folder / "soup", "--data", folder / "rows.jsonl",
        "--task", name, "--max_length", "32", *more,
    )  # fmt: skip


def hand_over(folder, settings):
    """Write another configuration into a finished node, as if it had been handed on so."""
    (folder / "config.json").write_text(json.dumps(settings))
    record = manifest.read(folder)
    record["files"] = hashes.files(folder)
    manifest.write_json(folder / manifest.NAME, record | {"outputs": hashes.outputs(record["files"])})


def test_averages_by_hand():
    found = load("classification").average([
        [{"label": "x", "probabilities": {"x": 0.6, "y": 0.4}}], [{"label": "y", "probabilities": {"x": 0.1, "y": 0.9}}],
    ])  # fmt: skip
    assert found == [{"label": "y", "probabilities": {"x": 0.35, "y": 0.65}}]
    likely = [[{"probabilities": {"x": 0.6, "y": 0.1}}], [{"probabilities": {"x": 0.3, "y": 0.5}}]]
    found = load("multilabel_classification", {"threshold": 0.4}).average(likely)
    assert found == [{"labels": ["x"], "probabilities": {"x": 0.45, "y": 0.3}}]
    found = load("multilabel_classification", {"tuned": True}).average(likely, [0.25, 0.375])
    assert found == [{"labels": ["x"], "probabilities": {"x": 0.45, "y": 0.3}}], "from the mean threshold on, 0.3125"
    assert load("regression").average([[{"value": 1.0}], [{"value": 4.0}]]) == [{"value": 2.5}]
    labelling = ["classification", "image_classification", "multilabel_classification", "regression", "zero_shot"]
    assert tasks.averaging() == labelling
    with pytest.raises(UserError, match="can't be averaged; those of classification"):
        load("question_answering").average([])


def test_an_ensemble_says_labels_from_the_mean_of_its_models_thresholds_on(run, parents, tmp_path):
    """Each threshold was tuned on validation rows; at 0.5 models that never reach it would say nothing together."""
    name = "multilabel_classification"
    two(run, parents, tmp_path, name, "--task_options", '{"tuned": true}')
    for folder, threshold in (("out1", 0.125), ("out2", 0.25)):
        settings = json.loads((tmp_path / folder / "config.json").read_text())
        assert 0 < settings["label_threshold"] < 1
        hand_over(tmp_path / folder, settings | {"label_threshold": threshold})
    data = write_rows(tmp_path / "new.jsonl", [{"text": row["text"]} for row in ROWS[name][:9]])
    status, _, err = run("predict", "--runs", tmp_path, "--node", "out1,out2", "--data", data)
    assert status == 0, err
    said = [line["said"] for line in lines(tmp_path / "out1-out2-predictions.jsonl")]
    assert any(line["labels"] for line in said)
    status, _, err = averaged(run, tmp_path, name, "--task_options", '{"tuned": true}')
    assert status == 0, err
    said += [line["rivals"]["mean of what they say"] for line in lines(tmp_path / "soup/predictions.jsonl")]
    for line in said:
        assert line["labels"] == [label for label, likely in line["probabilities"].items() if likely >= 0.1875]
    assert any(0.1875 <= likely < 0.5 for line in said for likely in line["probabilities"].values())


@pytest.mark.parametrize("name", ["classification", "regression", "question_answering"])
def test_weights_are_the_mean_and_parents_stand_beside_them(run, parents, tmp_path, name):
    two(run, parents, tmp_path, name)
    status, _, err = averaged(run, tmp_path, name)
    assert status == 0, err
    one, other, mean = (load_file(tmp_path / folder / "model.safetensors") for folder in ("out1", "out2", "soup"))
    assert mean.keys() == one.keys()
    for key, value in mean.items():
        assert torch.allclose(value, (one[key] + other[key]) / 2, atol=1e-6)
    assert any(not torch.equal(value, one[key]) for key, value in mean.items())
    record = manifest.read(tmp_path / "soup")
    found = record["evaluation"]
    columns = {"soup", "out1", "out2", load(name).baseline_name}
    ensemble = {"mean of what they say"} if name in tasks.averaging() else set()
    assert columns | ensemble <= found["figures"][load(name).primary].keys()
    assert (found["models"]["out1"]["role"], found["models"]["out2"]["role"]) == ("parent", "second")
    assert (found["primary"]["against"], found["primary"]["role"]) == ("out1", "parent")
    own = manifest.read(tmp_path / "out1")["evaluation"]["figures"]
    assert found["figures"][load(name).primary]["out1"] == own[load(name).primary]["out1"]
    if ensemble:
        said = [[line["rivals"][folder] for line in lines(tmp_path / "soup/predictions.jsonl")] for folder in ("out1", "out2")]
        mine = [line["rivals"]["mean of what they say"] for line in lines(tmp_path / "soup/predictions.jsonl")]
        assert mine == load(name).average(said)
    assert "up to date" in averaged(run, tmp_path, name)[1]
    assert run("evaluate", "--runs", tmp_path)[0] == 0
    again = json.loads((tmp_path / "evaluate.json").read_text())["nodes"]["soup"]
    assert again["figures"] == found["figures"]
    assert again["models"]["out1"]["role"] == "parent"


def test_several_nodes_predict_together(run, parents, tmp_path):
    two(run, parents, tmp_path)
    rows = [{"text": row["text"]} for row in ROWS["classification"][:9]]
    data = write_rows(tmp_path / "new.jsonl", rows)
    said = {}
    for node in ("out1", "out2", "out1,out2"):
        status, _, err = run("predict", "--runs", tmp_path, "--node", node, "--data", data)
        assert status == 0, err
        said[node] = [line["said"] for line in lines(tmp_path / f"{node.replace(',', '-')}-predictions.jsonl")]
    for mine, one, other in zip(said["out1,out2"], said["out1"], said["out2"], strict=True):
        for label, probability in mine["probabilities"].items():
            assert probability == pytest.approx((one["probabilities"][label] + other["probabilities"][label]) / 2, abs=2e-6)


def test_nodes_that_say_no_probabilities_are_refused(run, parents, tmp_path):
    two(run, parents, tmp_path, "question_answering")
    data = write_rows(tmp_path / "new.jsonl", [{"context": "A cat.", "question": "Who?"}])
    status, _, err = run("predict", "--runs", tmp_path, "--node", "out1,out2", "--data", data)
    assert status == 2
    assert "what out1 and out2 say can't be averaged" in err


def test_models_of_different_labels_are_refused():
    said = [[{"labels": [], "label": names[0], "probabilities": dict.fromkeys(names, 0.5)}] for names in ("xy", "xyz")]
    for name in ("classification", "multilabel_classification"):
        with pytest.raises(UserError, match="different labels can't be averaged: x, y; x, y, z"):
            load(name).average(said)


def model(labels, size=4):
    from transformers import BertConfig, BertForSequenceClassification

    settings = BertConfig(vocab_size=20, hidden_size=size, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    settings.id2label, settings.label2id = dict(enumerate(labels)), {name: number for number, name in enumerate(labels)}
    return BertForSequenceClassification(settings)


def test_models_that_differ_in_more_than_weights_are_refused():
    with pytest.raises(UserError, match=r"b: id2label is .*, in a .*differ in their weights alone"):
        averaging.averaged([model("xy"), model("yx")], ["a", "b"])
    with pytest.raises(UserError, match="b: hidden_size is 8, in a 4"):
        averaging.averaged([model("xy"), model("xy", 8)], ["a", "b"])
    one, other = model("xy"), model("xy")
    one.config.label_threshold, other.config.label_threshold = 0.25, 0.5
    assert averaging.averaged([one, other], ["a", "b"], "label_threshold").config.label_threshold == 0.375
    one, other = model("xy"), model("xy")
    one.config.label_threshold, other.config.label_threshold = 0.25, 0.5
    with pytest.raises(UserError, match=r"label_threshold is 0\.5"):
        averaging.averaged([one, other], ["a", "b"])


def test_a_parent_of_other_data_is_refused_and_rows_that_one_trained_on_are_left_out(run, parents, tmp_path):
    recipe = tmp_path / "drawn.py"
    rows = ROWS["classification"]
    recipe.write_text(
        f"import random\nROWS = {rows!r}\n\ndef labels(split, seed):\n    out = set(random.Random(seed).sample(range(len(ROWS)), 40))\n"
        "    yield from (row for number, row in enumerate(ROWS) if (number in out) == (split == 'held_out'))\n"
    )
    for seed in (1, 2):
        given = flags("classification", parents, tmp_path, "--seed", str(seed), "--recipe", recipe)
        at = given.index("--data")
        given[given.index("--output") + 1] = tmp_path / f"out{seed}"
        assert run("finetune", *given[:at], *given[at + 2 :])[0] == 0
    import random

    both = set.intersection(*({rows[n]["text"] for n in random.Random(seed).sample(range(len(rows)), 40)} for seed in (1, 2)))
    shared = ["--parent", tmp_path / "out1", "--second", tmp_path / "out2", "--task", "classification", "--max_length", "32", "--seed", "1"]  # fmt: skip
    status, _, err = run("soup", *shared, "--output", tmp_path / "soup", "--recipe", recipe)
    assert status == 0, err
    assert {line["row"]["text"] for line in lines(tmp_path / "soup/predictions.jsonl")} == both
    skipped = manifest.read(tmp_path / "soup")["evaluation"]["skipped"]
    assert skipped["held out here and trained on by a parent"] == 40 - len(both)
    data = write_rows(tmp_path / "others.jsonl", rows)
    status, _, err = run("soup", *shared, "--output", tmp_path / "soup2", "--data", data)
    assert status == 2
    assert "was trained on other data" in err


def test_rows_by_which_a_parent_was_chosen_are_left_out(run, parents, tmp_path):
    rows = ROWS["classification"]
    mine, last = write_rows(tmp_path / "mine.jsonl", rows[:60]), write_rows(tmp_path / "last.jsonl", rows[60:])
    data = f"{mine}=1,{last}=held_out"
    look = write_rows(tmp_path / "look.jsonl", [row | {"text": row["text"].upper()} for row in rows[55:70]])
    for number, more in ((1, ()), (2, ("--validation_data", look, "--patience", "1"))):
        given = flags("classification", parents, tmp_path, "--seed", str(number), *more)
        given[given.index("--output") + 1], given[given.index("--data") + 1] = tmp_path / f"out{number}", data
        status, _, err = run("finetune", *given)
        assert status == 0, err
    asked = ["--parent", tmp_path / "out1", "--second", tmp_path / "out2", "--task", "classification", "--max_length", "32", "--data", data]  # fmt: skip
    status, _, err = run("soup", *asked, "--output", tmp_path / "soup")
    assert status == 0, err
    known = lines(tmp_path / "soup/predictions.jsonl")
    assert sorted(line["row"]["text"] for line in known) == sorted(row["text"] for row in rows[70:])
    assert manifest.read(tmp_path / "soup")["evaluation"]["skipped"]["the same prompt or text as a validation row"] == 10
    for change in (lambda: write_rows(look, rows[55:60]), look.unlink):
        change()
        status, _, err = run("soup", *asked, "--output", tmp_path / "again")
        assert status == 2
        assert f"{tmp_path / 'out2'}: its validation_data, {look}, is not there as it was" in err

"""What is chosen on validation rows and never on held-out ones: thresholds; files of validation; n-best answers; beams."""

import json

import numpy as np
import pytest
import torch

from pipeline.chain import manifest
from pipeline.data.recipe import Rows
from pipeline.models import tokenization
from pipeline.system.errors import UserError
from pipeline.tasks import load
from tests.test_finetune import FORMAT, flags, write_rows
from tests.test_predict import lines
from tests.test_tasks import ROWS, TEXTS, examples_of, judged


class Model:
    """What has a configuration and nothing else."""

    def __init__(self):
        self.config = type("Config", (), {})()


def asked(answer):
    return {"context": "x", "question": "y", "answers": [{"text": answer, "start": 0}] if answer else []}


def said(span, score_diff):
    return {"answer": span if score_diff <= 0 else "", "span": span, "score_diff": score_diff, "probability": 0.5}


def test_the_threshold_of_no_answer_by_hand():
    """The spans of rows 1, 2, 4 and 5 are right; answering the first five gains 4 of F1 and loses 1, more than any other cut."""
    task, model = load("question_answering", {"tuned": True}), Model()
    rows = [asked("ox"), asked("bee"), asked(""), asked("dog"), asked("elk"), asked("")]
    scores = {"ox": -4.0, "bee": -1.0, "cat": 0.5, "dog": 1.0, "elk": 1.5, "fox": 3.0}
    predictions = [said(span, score) for span, score in scores.items()]
    found = task.tune(model, rows, predictions)
    assert model.config.null_score_diff_threshold == 2.25
    assert [line["answer"] for line in found] == ["ox", "bee", "cat", "dog", "elk", ""]

    def f1(threshold):
        with_it = [line | {"answer": line["span"] if line["score_diff"] <= threshold else ""} for line in predictions]
        figure = task.figures(rows, with_it)["f1"]
        return float(figure.of(figure.items.sum(0)))

    assert f1(2.25) == max(f1(threshold) for threshold in np.arange(-6, 6, 0.25)) == pytest.approx(5 / 6)
    shuffled = [3, 0, 5, 1, 4, 2]
    task.tune(model, [rows[number] for number in shuffled], [predictions[number] for number in shuffled])
    assert model.config.null_score_diff_threshold == 2.25


@pytest.mark.parametrize(("answers", "which"), [(["ox", "bee"], "every"), (["", ""], "no")])
def test_a_threshold_needs_questions_of_both_kinds(answers, which):
    rows = [asked(answer) for answer in answers]
    with pytest.raises(UserError, match=f"tuned: of 2 validation rows {which} one has an answer"):
        load("question_answering", {"tuned": True}).tunable(rows)
    load("question_answering").tunable(rows)
    load("question_answering", {"tuned": True}).tunable([asked("ox"), asked("")])


def test_it_is_told_before_the_first_step(run, parents, tmp_path):
    rows = [FORMAT["question_answering"](row) for row in ROWS["question_answering"] if row["answers"]]
    given = tuned_flags(parents, tmp_path, "question_answering")
    write_rows(tmp_path / "rows.jsonl", rows)
    status, out, err = run("finetune", *given)
    assert status == 2
    assert "validation rows every one has an answer" in err
    assert "step 1/" not in out


def test_rows_of_one_score_are_answered_together_or_not_at_all():
    task, model = load("question_answering", {"tuned": True}), Model()
    rows = [asked("ox"), asked(""), asked("")]
    found = task.tune(model, rows, [said("ox", 1.0), said("bee", 1.0), said("cat", 1.0)])
    assert [line["answer"] for line in found] == ["", "", ""]


def test_n_best_answers_are_different_texts_with_probabilities_among_them_and_none(parents):
    task, words, model, _, _ = examples_of("question_answering", parents["mlm"], stride=4, n_best_size=5)
    rows = Rows(kept=ROWS["question_answering"][:6])
    many = task.predict(model, words, rows, 32)
    one = load("question_answering", {"stride": 4}).predict(model, words, rows, 32)
    for line, alone in zip(many, one, strict=True):
        texts, likely = ([answer[key] for answer in line["n_best"]] for key in ("text", "probability"))
        assert len(set(texts)) == len(texts) == 5
        assert likely == sorted(likely, reverse=True)
        assert 0 < sum(likely) < 1
        assert {key: line[key] for key in alone} == alone
        assert line["span"] == texts[0]
        none = 1 - sum(likely)
        assert np.log(none / likely[0]) == pytest.approx(line["score_diff"], abs=1e-3)


def test_a_threshold_is_that_of_the_evaluation_of_squad(parents):
    """No answer is given where its score exceeds that of the best span by more than the threshold."""
    _, words, model, _, _ = examples_of("question_answering", parents["mlm"], stride=4)
    rows = Rows(kept=ROWS["question_answering"][:12])
    found = load("question_answering", {"stride": 4}).predict(model, words, rows, 32)
    middle = sorted(line["score_diff"] for line in found)[5] + 1e-5
    moved = load("question_answering", {"stride": 4, "null_score_diff_threshold": middle}).predict(model, words, rows, 32)
    assert [line["answer"] for line in moved] == [line["span"] if line["score_diff"] <= middle else "" for line in found]
    assert {bool(line["answer"]) for line in moved} == {True, False}


def test_the_probability_of_labels_by_hand():
    task, model = load("multilabel_classification", {"tuned": True}), Model()
    rows = [{"labels": ["x"]}, {"labels": ["x", "y"]}, {"labels": []}, {"labels": []}]
    likely = [(0.3, 0.1), (0.35, 0.3), (0.2, 0.22), (0.1, 0.1)]
    predictions = [{"labels": [], "probabilities": {"x": one, "y": two}} for one, two in likely]
    found = task.tune(model, rows, predictions)
    assert [line["labels"] for line in found] == [["x"], ["x", "y"], [], []]
    assert model.config.label_threshold == 7 / 24  # the nearest to 0.5 of those with every answer right


def test_a_threshold_that_is_given_and_chosen_is_refused():
    for name, key in (("question_answering", "null_score_diff_threshold"), ("multilabel_classification", "threshold")):
        with pytest.raises(UserError, match=f"{key}: is read only with tuned: False"):
            load(name, {"tuned": True, key: 0.25})


def tuned_flags(parents, folder, name, *more):
    given = flags(name, parents, folder, *more)
    options = json.loads(given[given.index("--task_options") + 1]) | {"tuned": True}
    given[given.index("--task_options") + 1] = json.dumps(options)
    return given


@pytest.mark.parametrize("name", ["question_answering", "multilabel_classification"])
def test_what_is_tuned_goes_with_the_model(run, parents, tmp_path, name):
    """It is chosen on rows that are held back, stands in the model's configuration and the record, and predict reads it."""
    status, out, err = run("finetune", *tuned_flags(parents, tmp_path, name, "--validation", "0.3"))
    assert status == 0, err
    folder, key = tmp_path / "out", load(name).tunes
    record, settings = manifest.read(folder), json.loads((folder / "config.json").read_text())
    assert record["tuned"] == {key: settings[key]}
    assert record["recipe"]["validation"] > 0
    assert f"{key} {settings[key]:.4g}, by {load(name).primary} on {record['recipe']['validation']} validation rows" in out
    known = lines(folder / "predictions.jsonl")
    for line in known:
        if name == "question_answering":
            wanted = line["said"]["span"] if line["said"]["score_diff"] <= settings[key] else ""
            assert line["said"]["answer"] == wanted
        else:
            assert line["said"]["labels"] == [one for one, p in line["said"]["probabilities"].items() if p >= settings[key]]
    held_out = {json.dumps(line["row"], sort_keys=True) for line in known}
    given = [FORMAT[name](row) for row in ROWS[name]]
    assert len(held_out) + record["recipe"]["validation"] < len(given)
    data = write_rows(tmp_path / "new.jsonl", [FORMAT[name](line["row"]) for line in known])
    assert run("predict", "--runs", tmp_path, "--node", "out", "--data", data, "--output", tmp_path / "said.jsonl")[0] == 0
    for mine, theirs in zip(lines(tmp_path / "said.jsonl"), known, strict=True):
        for part in ("answer", "labels"):
            assert mine["said"].get(part) == theirs["said"].get(part)


def test_a_file_of_validation_is_neither_trained_on_nor_evaluated_on(run, parents, tmp_path):
    rows = ROWS["classification"]
    given = flags("classification", parents, tmp_path, "--patience", "1", "--held_out", "100")
    at = given.index("--data")
    mine, theirs, last = rows[:60], rows[50:70], rows[65:]
    write_rows(tmp_path / "mine.jsonl", mine)
    write_rows(tmp_path / "last.jsonl", last)
    write_rows(tmp_path / "look.jsonl", [row | {"text": row["text"].upper()} for row in theirs])
    data = ["--data", f"{tmp_path}/mine.jsonl=1,{tmp_path}/last.jsonl=held_out", "--validation_data", tmp_path / "look.jsonl"]
    status, out, err = run("finetune", *given[:at], *given[at + 2 :], *data)
    assert status == 0, err
    record = manifest.read(tmp_path / "out")
    assert record["recipe"]["validation"] == 20
    assert record["recipe"]["kept"] == 50
    assert record["recipe"]["dropped"] == {"the same prompt or text as a validation row": 10}
    known = lines(tmp_path / "out/predictions.jsonl")
    assert sorted(line["row"]["text"] for line in known) == sorted(row["text"] for row in rows[70:])
    assert record["evaluation"]["skipped"]["the same prompt or text as a validation row"] == 5
    assert record["evaluation"]["of"] == "20 held-out labelled texts of mine.jsonl=1,last.jsonl=held_out"
    assert "up to date" in run("finetune", *given[:at], *given[at + 2 :], *data)[1]
    write_rows(tmp_path / "look.jsonl", theirs[:10])
    status, out, _ = run("finetune", *given[:at], *given[at + 2 :], *data, "--why", "yes")
    assert "look.jsonl" in out


def test_files_named_as_splits_are_train_validation_and_test(run, parents, tmp_path):
    rows, folder = ROWS["classification"], tmp_path / "data"
    folder.mkdir()
    for name, part in {"train": rows[:50], "validation": rows[50:70], "test": rows[70:]}.items():
        write_rows(folder / f"{name}.jsonl", part)
    given = flags("classification", parents, tmp_path, "--patience", "1")
    at = given.index("--data")
    status, _, err = run(
        "finetune", *given[:at], *given[at + 2 :], "--data", folder, "--validation_data", folder / "validation.jsonl"
    )
    assert status == 0, err
    record = manifest.read(tmp_path / "out")
    assert (record["recipe"]["kept"], record["recipe"]["validation"], record["evaluation"]["rows"]) == (50, 20, 20)


def test_a_file_of_validation_that_nobody_reads_is_refused(run, parents, tmp_path):
    file = write_rows(tmp_path / "look.jsonl", ROWS["classification"])
    status, _, err = run("finetune", *flags("classification", parents, tmp_path, "--validation_data", file))
    assert status == 2
    assert "validation_data: is not read without patience, or a task that is tuned" in err
    more = ("--validation_data", file, "--patience", "1")
    status, _, err = run("finetune", *flags("classification", parents, tmp_path, *more))
    assert status == 2
    assert "every training row stands in it" in err


@pytest.mark.parametrize("name", ["classification", "multilabel_classification", "token_classification"])
def test_rows_with_labels_that_training_never_saw_are_named(run, parents, tmp_path, name):
    label = {"classification": {"label": "odd"}, "multilabel_classification": {"labels": ["odd"]}}
    mine, test = write_rows(tmp_path / "mine.jsonl", ROWS[name][:60]), tmp_path / "last.jsonl"
    words = "It was an odd thing .".split()
    strange = label.get(name, {"tokens": words, "tags": ["O", "O", "O", "B-ODD", "O", "O"]})
    write_rows(test, [*ROWS[name][60:70], ({"text": " ".join(words)} if name in label else {}) | strange])
    given = flags(name, parents, tmp_path)
    at = given.index("--data")
    status, out, err = run("finetune", *given[:at], *given[at + 2 :], "--data", f"{mine}=1,{test}=held_out")
    assert status == 0, err
    odd = "B-ODD" if name == "token_classification" else "odd"
    assert f"so that the model can't say them: {odd!r} at {test}:11" in out
    assert manifest.read(tmp_path / "out")["evaluation"]["unseen_labels"] == {odd: 1}


@judged
def test_beams_and_their_penalty_are_those_of_the_library(run, parents, tmp_path):
    """The predictions, and what the model that is handed on generates by itself."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    given = flags("sequence_to_sequence", parents, tmp_path, "--max_steps", "30", "--learning_rate", "3e-3")
    options = {"num_beams": 4, "length_penalty": 0.2, "longest_target": 12}
    given[given.index("--task_options") + 1] = json.dumps(options)
    status, _, err = run("finetune", *given)
    assert status == 0, err
    folder = tmp_path / "out"
    assert manifest.read(folder)["config"]["task_options"] == options
    model, words = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.generation_config.num_beams, model.generation_config.length_penalty) == (4, 0.2)
    for line in lines(folder / "predictions.jsonl"):
        ids = model.generate(**words(line["row"]["source"], return_tensors="pt"), max_new_tokens=12)
        assert words.decode(ids[0], skip_special_tokens=True).strip() == line["said"]["target"]
    data = write_rows(tmp_path / "new.jsonl", [{"source": TEXTS[3]}])
    assert run("predict", "--runs", tmp_path, "--node", "out", "--data", data, "--output", tmp_path / "said.jsonl")[0] == 0
    ids = model.generate(**words(TEXTS[3], return_tensors="pt"), max_new_tokens=12)
    assert lines(tmp_path / "said.jsonl")[0]["said"]["target"] == words.decode(ids[0], skip_special_tokens=True).strip()


@judged
def test_a_beam_is_at_least_as_likely_as_the_greedy_target(parents):
    task = load("sequence_to_sequence", {"longest_target": 8})
    folder = str(parents["span_corruption"])
    torch.manual_seed(0)
    model, words = task.load_model(folder), tokenization.load(folder)
    rows = Rows(kept=ROWS["sequence_to_sequence"][:12])
    greedy = task.predict(model, words, rows, 32)
    beams = load("sequence_to_sequence", {"longest_target": 8, "num_beams": 8, "length_penalty": 0.0}).predict(
        model, words, rows, 32
    )
    assert all(mine["nats"] <= theirs["nats"] + 1e-3 for mine, theirs in zip(beams, greedy, strict=True))
    assert any(mine["nats"] < theirs["nats"] - 1e-2 for mine, theirs in zip(beams, greedy, strict=True))
    with pytest.raises(UserError, match="length_penalty: is read only with num_beams above 1"):
        load("sequence_to_sequence", {"length_penalty": 0.5})

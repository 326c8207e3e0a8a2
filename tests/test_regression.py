"""Regression: numbers of every scale, the plain checkpoint, a parent's own head, figures, the rival, what is refused."""

import json
import re

import numpy as np
import pytest
import torch

from pipeline.chain import manifest
from pipeline.data import types
from pipeline.data.recipe import Rows
from pipeline.data.types import Malformed
from pipeline.models import tokenization
from pipeline.system.errors import UserError
from pipeline.tasks import load
from pipeline.tasks._texts import last_layer
from tests.test_finetune import flags, write_rows
from tests.test_tasks import FAMILIES, ROWS, TEXTS

TASK = load("regression")


def converted(row):
    return types.recognise(row, "values", "here").convert(row)


def test_a_value_is_a_number():
    assert converted({"text": "a", "value": "3.5"}) == {"text": "a", "value": 3.5}
    assert converted({"sentence1": "a", "sentence2": "b", "label": 4}) == {"text": "a", "text_pair": "b", "value": 4.0}
    assert converted({"text": "a", "score": -1})["value"] == -1.0  # a number like any other
    for none in (None, "", float("nan")):
        assert types.load("values").fault(converted({"text": "a", "value": none})) == "no value"
    for value in ("good", [1], float("inf"), True):
        with pytest.raises(Malformed, match="not a number"):
            converted({"text": "a", "value": value})


@pytest.mark.parametrize("scale", [(0.0, 0.001), (1600.0, 15.0), (-5e6, 1e6)])
@pytest.mark.parametrize("source", sorted(FAMILIES))
def test_every_scale_is_predicted_by_the_plain_checkpoint(parents, tmp_path, source, scale):
    """A new head predicts about the mean; what is saved predicts the same, by itself or by the scale that its configuration names."""
    from transformers import AutoModelForSequenceClassification

    rows = [row | {"value": scale[0] + scale[1] * number} for number, row in enumerate(ROWS["regression"][:24])]
    values = [row["value"] for row in rows]
    model, words = TASK.load_model(str(parents[source]), ["value"], rows=rows), tokenization.load(str(parents[source]))
    before = [line["value"] for line in TASK.predict(model, words, Rows(kept=rows), 32)]
    assert np.mean(before) == pytest.approx(np.mean(values), abs=3 * np.std(values))
    TASK.save(model, words, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert plain.config.problem_type == "regression"
    after = [line["value"] for line in TASK.predict(TASK.load_model(str(tmp_path)), words, Rows(kept=rows), 32)]
    assert after == pytest.approx(before, abs=1e-3 * np.std(values))
    if last_layer(plain).bias is not None:
        assert (plain.config.value_mean, plain.config.value_std) == (0.0, 1.0)
        with torch.no_grad():
            said = plain(**words(rows[0]["text"], return_tensors="pt")).logits.item()
        assert said == pytest.approx(before[0], abs=1e-3 * np.std(values))


def test_the_loss_is_the_same_on_every_scale(parents):
    losses = []
    for factor, more in ((1.0, 0.0), (1000.0, -7.0)):
        rows = [row | {"value": more + factor * row["value"]} for row in ROWS["regression"][:16]]
        torch.manual_seed(0)
        model, words = TASK.load_model(str(parents["mlm"]), ["value"], rows=rows), tokenization.load(str(parents["mlm"]))
        made = list(TASK.examples(Rows(kept=rows), words, 32, ["value"]))
        batch = TASK.collator(words, {"value": [row["value"] for row in made]})(
            [{key: value for key, value in row.items() if key != "row"} for row in made]
        )
        assert batch["value"].mean().item() == pytest.approx(0, abs=1e-5)
        assert batch["value"].std(correction=0).item() == pytest.approx(1, abs=1e-4)
        losses.append(TASK.losses(model.eval(), batch)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_parent_that_predicts_goes_on_from_its_predictions(parents, tmp_path):
    rows = ROWS["regression"][:12]
    words = tokenization.load(str(parents["mlm"]))
    TASK.save(TASK.load_model(str(parents["mlm"]), ["value"], rows=rows), words, tmp_path)
    said = TASK.predict(TASK.load_model(str(tmp_path)), words, Rows(kept=rows), 32)
    other = [row | {"value": 100 - row["value"]} for row in rows]
    again = TASK.predict(TASK.load_model(str(tmp_path), ["value"], rows=other), words, Rows(kept=rows), 32)
    assert [line["value"] for line in again] == pytest.approx([line["value"] for line in said], abs=0.01)


def test_figures_are_those_of_scipy_and_the_baseline_knows_nothing():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    true = rng.normal(size=200).round(1)
    said = true + rng.normal(size=200).round(1)
    rows, predicted = ([{"value": float(value)} for value in values] for values in (true, said))
    found = {name: float(one.of(one.items.sum(0))) for name, one in TASK.figures(rows, predicted).items()}
    assert found == pytest.approx({
        "pearson": stats.pearsonr(true, said)[0], "spearman": stats.spearmanr(true, said)[0],
        "rmse": float(np.sqrt(np.mean((true - said) ** 2))),
    })  # fmt: skip
    found = {name: float(one.of(one.items.sum(0))) for name, one in TASK.figures(rows, TASK.baseline(rows, rows)).items()}
    assert found == pytest.approx({"pearson": 0, "spearman": 0, "rmse": float(np.std(true))}, abs=1e-5)


def test_the_rival_finds_words_that_count():
    pytest.importorskip("sklearn")
    rows = [{"text": text, "value": 3.0 * ("cat" in text) - 5.0 * ("dog" in text)} for text in TEXTS]
    ((name, predicted),) = TASK.rivals(rows[::2], rows[1::2])
    assert name == "ridge on TF-IDF"
    assert TASK.figures(rows[1::2], predicted)["pearson"].estimate().low > 0.5


def test_it_learns_a_value_that_follows_from_the_text(run, parents, tmp_path):
    """Against the mean of the training rows, which the error of a model that learned nothing can't beat."""
    rows = [{"text": f"{text} {number}", "label": 1000.0 + 50.0 * ("sad" in text)} for number, text in enumerate(TEXTS * 5)]
    given = flags("regression", parents, tmp_path, "--max_steps", "80", "--learning_rate", "5e-3")
    at = given.index("--data")
    given[at + 1] = write_rows(tmp_path / "rows.jsonl", rows)
    status, _, err = run("finetune", *given, "--per_device_train_batch_size", "8")
    assert status == 0, err
    compared = manifest.read(tmp_path / "out")["evaluation"]["comparisons"]
    found = {one["metric"]: one for one in compared if one["against"] == "mean value"}
    assert found["rmse"]["high"] < 0
    assert found["pearson"]["low"] > 0.3
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert all(900 < line["said"]["value"] < 1150 for line in lines)


def test_labels_with_fractions_are_no_classes(run, parents, tmp_path):
    rows = [{"text": text, "label": number / 4} for number, text in enumerate(TEXTS)]
    given = flags("classification", parents, tmp_path)
    given[given.index("--data") + 1] = write_rows(tmp_path / "rows.jsonl", rows)
    status, _, err = run("finetune", *given)
    assert status == 2
    assert re.search(
        r"label: \d+ different labels, all of them numbers, such as \d+\.\d+: `task: regression` predicts numbers", err
    )
    whole = [{"label": str(float(number % 3))} for number in range(9)]
    assert load("classification").labels(whole) == ["0.0", "1.0", "2.0"]
    assert load("classification").labels([{"label": "2.5"}, {"label": "none"}]) == ["2.5", "none"]


def test_one_value_for_all_is_refused():
    with pytest.raises(UserError, match="every row has the value 3"):
        TASK.labels([{"text": "a", "value": 3.0}, {"text": "b", "value": 3.0}])


def test_words_of_one_beginning_are_on_one_side():
    pytest.importorskip("vaderSentiment", reason="make setup-data")
    from data_recipes.valences import values

    rows = {split: [row for row in values(split, 1) if "text" in row] for split in ("train", "held_out")}
    assert not {row["text"][:4] for row in rows["train"]} & {row["text"][:4] for row in rows["held_out"]}
    assert len(rows["train"]) > 5000
    assert len(rows["held_out"]) > 1000
    assert all(-4 <= row["value"] <= 4 for kept in rows.values() for row in kept)

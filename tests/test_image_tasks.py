"""Classification of pictures by the stage: from an encoder of ours, with few labels, against pixels and random weights."""

import base64
import contextlib
import io
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi

from pipeline import tasks
from pipeline.chain import manifest
from pipeline.data import pictures, recipe
from pipeline.data.rows import Rows
from pipeline.models import vision
from pipeline.system.errors import UserError
from pipeline.training import validation
from tests.conftest import mostly_slow
from tests.images import drawn, folder, looked_at, nearly, rows, saved, scene
from tests.test_image_objectives import flags as pretraining
from tests.test_push import head

CHECKED = [
    *"--task image_classification --max_steps 12 --learning_rate 1e-3".split(),
    "--per_device_train_batch_size",
    "8",
]


@pytest.fixture(params=["simclr"])
def parent(request, run, tmp_path):
    """A vision encoder that took a few steps."""
    status, _, err = run("pretrain", *pretraining(request.param, tmp_path, "--max_steps", "2"))
    assert status == 0, err
    return (tmp_path / "out").rename(tmp_path / "parent")


def flags(tmp_path, parent, *more, output="finetune"):
    return [*CHECKED, "--parent", parent, "--recipe", tmp_path / "scenes.yaml", "--output", tmp_path / "runs" / output, *more]


def said(path):
    return [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", mostly_slow(["simclr", "mae"], "simclr"))
def test_it_is_trained_measured_and_loads_as_anybody_would(run, tmp_path, kind):
    import transformers

    pytest.importorskip("sklearn")
    assert run("pretrain", *pretraining(kind, tmp_path, "--max_steps", "2"))[0] == 0
    (tmp_path / "out").rename(tmp_path / "parent")
    status, out, err = run("finetune", *flags(tmp_path, tmp_path / "parent"))
    assert status == 0, err
    made = tmp_path / "runs" / "finetune"
    assert manifest.read(made)["family"] == "image_classifier"
    assert "logistic regression on raw pixels (baseline)" in out
    assert "best guess by frequency (baseline)" in out
    lines = said(made)
    assert not any("bytes" in line["row"]["image"] for line in lines)
    model, told = transformers.AutoModelForImageClassification.from_pretrained(made, output_loading_info=True)
    assert not told["missing_keys"]
    processor = transformers.AutoImageProcessor.from_pretrained(made, backend="pil")
    by_path = {f"{seed}.png": scene(seed)[0] for seed in range(80)}
    for line in lines[:8]:
        image = by_path[line["row"]["image"]["path"]]
        with torch.no_grad():
            logits = model(**processor(image, return_tensors="pt")).logits[0]
        likely = {model.config.id2label[number]: float(share) for number, share in enumerate(logits.softmax(-1))}
        assert likely == pytest.approx(line["said"]["probabilities"], abs=1e-4)
    status, out, err = run("evaluate", "--runs", tmp_path / "runs")
    assert status == 0, err
    assert "macro_f1" in out
    assert run("report", "--runs", tmp_path / "runs")[0] == 0
    page = (tmp_path / "runs" / "report.html").read_text()
    answers = page.split('id="answers"')[1].split("<section", 1)[0]
    urls = re.findall(r'<img src="([^"]+)" alt="what is predicted of">', answers)
    assert len(urls) == 4
    shown = re.findall(r"<dt>its label</dt><dd>(\w+)</dd></div>\s*<div><dt>finetune</dt><dd>(\w+)</dd>", answers)
    every = lines[:: -(-len(lines) // 4)]
    assert shown == [(line["row"]["label"], line["said"]["label"]) for line in every]
    for url, line in zip(urls, every, strict=True):
        assert np.array_equal(looked_at(url), np.asarray(by_path[line["row"]["image"]["path"]]))
    assert 'alt="row 1, as the model is shown it"' in page.split('id="masks"')[1]


@pytest.mark.parametrize("strategy", mostly_slow(["frozen", "last_n", "lora"], "frozen"))
def test_what_a_strategy_leaves_alone_stays_as_it_was(run, tmp_path, parent, strategy):
    before = vision.encoder(str(parent), pooler=False).state_dict()
    more = ["--last_layers", "1"] if strategy == "last_n" else []
    status, _, err = run("finetune", *flags(tmp_path, parent, "--strategy", strategy, "--max_steps", "4", *more))
    assert status == 0, err
    after = vision.encoder(str(tmp_path / "runs" / "finetune"), pooler=False).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert bool(moved) == (strategy != "frozen")
    if strategy == "last_n":
        assert {name.split(".")[1] for name in moved if name.startswith("layers.")} == {"1"}
        assert "embeddings.patch_embeddings.projection.weight" not in moved


def test_a_control_begins_at_random_weights(run, tmp_path, parent):
    task = tasks.load("image_classification")
    torch.manual_seed(0)
    ours, other = (task.load_model(str(parent), ["a", "b"], random) for random in (False, True))
    one, two = (model.vit.embeddings.patch_embeddings.projection.weight for model in (ours, other))
    assert torch.equal(one, vision.encoder(str(parent)).embeddings.patch_embeddings.projection.weight)
    assert not torch.equal(one, two)
    assert ours.config.id2label == {0: "a", 1: "b"}


def test_few_labels_are_a_share_of_each_drawn_by_seed():
    labelled = [{"label": "a", "number": n} for n in range(100)] + [{"label": "b", "number": n} for n in range(7)]

    def drawn(share, seed=1):
        found = Rows(kept=list(labelled))
        validation.label_few(found, share, seed, lambda row: [row["label"]])
        assert len(found.kept) + found.dropped["without a label, as `labelled` says"] == 107
        return found.kept

    assert Counter(row["label"] for row in drawn(0.1)) == {"a": 10, "b": 1}
    assert Counter(row["label"] for row in drawn(0.01)) == {"a": 1, "b": 1}
    assert drawn(0.1) == drawn(0.1)
    assert drawn(0.1) != drawn(0.1, seed=2)


def test_it_is_given_as_few_labels_as_asked(run, tmp_path, parent):
    status, out, err = run("finetune", *flags(tmp_path, parent, "--task_options", "{labelled: 0.25}"))
    assert status == 0, err
    kept = manifest.read(tmp_path / "runs" / "finetune")["recipe"]
    whole = kept["kept"] + kept["dropped"]["without a label, as `labelled` says"]
    assert abs(kept["kept"] - whole / 4) <= 1  # of two labels, each by itself
    assert "without a label, as `labelled` says" in out


def test_predictions_of_new_pictures(run, tmp_path, parent):
    assert run("finetune", *flags(tmp_path, parent))[0] == 0
    new = tmp_path / "new"
    new.mkdir()
    for seed in (100, 101):
        (new / f"{seed}.png").write_bytes(saved(scene(seed)[0]))
    (new / "broken.png").write_bytes(b"nothing")
    status, out, err = run(
        "predict", "--runs", tmp_path / "runs", "--node", "finetune", "--data", new, "--output", tmp_path / "said.jsonl"
    )
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [line["said"] is None for line in lines] == [False, False, True]
    assert lines[2]["reason"] == "not an image of a kind that is read"
    assert not any("bytes" in line["row"]["image"] for line in lines)
    assert "3 rows by finetune" in out


@pytest.mark.parametrize("name", mostly_slow(["simclr", "mae", "finetune"], "finetune"))
def test_models_of_pictures_are_pushed_with_their_processor_and_the_code_on_their_card_runs(run, hub, tmp_path, name):
    kind = name if name != "finetune" else "simclr"
    assert run("pretrain", *pretraining(kind, tmp_path, "--max_steps", "1"))[0] == 0
    (tmp_path / "runs").mkdir()
    (tmp_path / "out").rename(tmp_path / "runs" / "pretrain")
    node = "pretrain"
    if name == "finetune":
        node = "finetune"
        assert run("finetune", *flags(tmp_path, tmp_path / "runs" / "pretrain", "--max_steps", "1"))[0] == 0
    given = ["--hub", "me/any", "--runs", tmp_path / "runs", "--node", node, "--names", f"{{{node}: me/any}}", "--force", "yes"]
    status, out, err = run("push", *given)
    assert status == 0, err
    assert "logits of 3 prompts by AutoModel" in out
    files = head(hub, "me/any")
    assert "preprocessor_config.json" in files
    card = files["README.md"].data.decode()
    tag = {"simclr": "image-feature-extraction", "finetune": "image-classification"}.get(name)
    assert tag is None or f"pipeline_tag: {tag}" in card
    block = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]
    where = HfApi(endpoint=hub.url).snapshot_download("me/any", cache_dir=tmp_path / "cache")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(block.replace('"me/any"', repr(where)), {})
    assert printed.getvalue()


def test_raw_pixels_tell_what_pixels_can_tell():
    """A rival must not be a straw man: dark and light pictures are told apart by their pixels."""
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    Image = pytest.importorskip("PIL.Image")
    made = []
    for number in range(120):
        label = ("dark", "light")[number % 2]
        levels = rng.integers(0, 120, (16, 16, 3)) + (120 if label == "light" else 0)
        made.append({"image": pictures.held(saved(Image.fromarray(levels.astype(np.uint8)))), "label": label})
    task = tasks.load("image_classification")
    (name, found), *_ = task.rivals(made[:80], made[80:])
    assert name == "logistic regression on raw pixels"
    assert [line["label"] for line in found] == [row["label"] for row in made[80:]]


def test_balance_weighs_rare_labels(tmp_path):
    task, processor = tasks.load("image_classification", {"balance": "weights"}), vision.new_processor(32)
    examples = list(task.examples(Rows(kept=rows(8)), processor, 0, ["circle", "square"]))
    some = {"label": [0, 1, 1, 1], "pixels": [one["pixels"] for one in examples[:4]]}
    batch = task.collator(processor, some)(
        [{"pixels": pixels, "label": label} for pixels, label in zip(some["pixels"], some["label"], strict=True)]
    )
    assert batch["weight"].tolist() == pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3])
    assert batch["pixel_values"].shape == (4, 3, 32, 32)


def test_pictures_of_validation_are_neither_trained_on_nor_evaluated_on_nor_is_what_looks_like_them(run, tmp_path, parent):
    for number in range(80):
        place = tmp_path / "mine" / ("even", "odd")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(saved(drawn(number, side=16)))
    (tmp_path / "scenes.yaml").write_text(f"type: images\nheld_out: 0.2\nsources:\n  - files: {tmp_path}/mine\n")
    mine = recipe.load(str(tmp_path / "scenes.yaml"))
    trained, held_out = (mine.rows("images", split, 42).kept for split in recipe.SPLITS)
    look = {"same": trained[:3], "near": trained[3:8], "last": held_out[:2], "like": held_out[2:5]}
    for kind, group in look.items():
        for row in group:
            place = tmp_path / "look" / row["label"] / f"{kind}{row['image']['path']}"
            place.parent.mkdir(parents=True, exist_ok=True)
            whole = base64.b64decode(row["image"]["bytes"])
            place.write_bytes(whole if kind in ("same", "last") else nearly(row["image"]))
    for number in range(100, 106):
        (tmp_path / "look" / "even" / f"{number}.png").write_bytes(saved(drawn(number, side=16)))
    (tmp_path / "look" / "odd" / "broken.png").write_bytes(b"nothing")
    given = flags(tmp_path, parent, "--validation_data", tmp_path / "look", "--patience", "1")
    status, out, err = run("finetune", *given)
    assert status == 0, err
    record = manifest.read(tmp_path / "runs" / "finetune")
    reasons = ["the same prompt or text as a validation row", "nearly the same as a validation row"]
    assert record["recipe"]["validation"] == 19
    assert record["recipe"]["dropped"] == dict(zip(reasons, (3, 5), strict=True))
    assert record["evaluation"]["skipped"] == dict(zip(reasons, (2, 3), strict=True))
    assert "validation_data: 1 row dropped: not an image of a kind that is read" in out
    assert len(said(tmp_path / "runs" / "finetune")) == len(held_out) - 5
    assert "up to date" in run("finetune", *given)[1]
    (tmp_path / "look" / "odd").rename(tmp_path / "look" / "other")  # the same files in the same order, with another label
    assert "validation_data" in run("finetune", *given, "--why", "yes")[1]


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--strategy", "prompt"], "strategy: prompt puts soft tokens before a text, and this task reads pictures"),
        (["--max_length", "64"], "max_length: is not read by the task image_classification"),
        (["--augmentation", "token_dropout"], "augmentation: token_dropout: changes texts, and this task reads pictures"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(run, tmp_path, parent, more, wanted):
    status, _, err = run("finetune", *flags(tmp_path, parent, *more))
    assert (status, wanted in err, "Traceback" in err) == (2, True, False), err


def test_pictures_without_labels_are_told():
    unlabelled = [{"image": row["image"]} for row in rows(3)]
    with pytest.raises(UserError, match="3 of 5 pictures have no label"):
        tasks.load("image_classification").labels([*unlabelled, *rows(2)])


def test_a_text_model_is_no_parent(run, tmp_path, chain):
    folder(tmp_path / "scenes")
    (tmp_path / "scenes.yaml").write_text(f"type: images\nsources:\n  - files: {tmp_path}/scenes\n")
    status, _, err = run("finetune", *flags(tmp_path, chain / "pretrain"))
    assert status == 2
    assert "vision" in err

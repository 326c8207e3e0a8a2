"""Classes told by prompts: the vectors by hand, the stage that trains nothing, and the same task trained."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline import tasks
from pipeline.chain import manifest
from tests.images import folder
from tests.test_clip import flags as pretraining
from tests.test_clip import opened

PROMPTS = "prompts: ['a {}', 'number {}']"


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A dual encoder that was not trained."""
    made = tmp_path_factory.mktemp("parent")
    _objective, processor, model = opened()
    model.save_pretrained(made)
    processor.save_pretrained(made)
    return made


def flags(tmp_path, parent, *more, options=PROMPTS):
    data, recipe = tmp_path / "classes", tmp_path / "classes.yaml"
    recipe.write_text(f"type: images\nheld_out: 0.4\nsources:\n  - files: {data if data.exists() else folder(data, 40)}\n")
    where = ["--recipe", recipe, "--parent", parent, "--output", tmp_path / "out"]
    return [*where, "--task", "zero_shot", "--task_options", f"{{{options}}}", *more]


def test_a_class_is_the_mean_of_its_prompts(parent):
    task = tasks.load("zero_shot", {"prompts": ["a {}", "number {}"], "names": {"one": "circle"}})
    model = task.load_model(str(parent), ["one", "square"]).eval()
    tokenizer, pixels = task.processor(str(parent)).tokenizer, torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        found = task.logits(model, {"pixel_values": pixels})
        pictures = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        for number, name in enumerate(("circle", "square")):
            each = [
                model.get_text_features(**tokenizer(f"{said} {name}", return_tensors="pt")).pooler_output[0]
                for said in ("a", "number")
            ]
            mean = torch.stack([torch.nn.functional.normalize(one, dim=-1) for one in each]).mean(0)
            wanted = pictures @ torch.nn.functional.normalize(mean, dim=-1) * model.logit_scale.exp()
            assert torch.allclose(found[:, number], wanted, atol=1e-4)


def test_the_stage_trains_nothing_and_asks_held_out_pictures(run, tmp_path, parent):
    status, said, err = run("zero_shot", *flags(tmp_path, parent))
    assert status == 0, err
    assert "of which none is trained" in said
    before, after = load_file(parent / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert before.keys() == after.keys()
    record = manifest.read(tmp_path / "out")
    assert record["family"] == "dual_encoder"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "circle", "1": "square"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == record["evaluation"]["rows"]
    assert "a class at random" in said
    first = record["outputs"]
    assert run("zero_shot", *flags(tmp_path, parent, "--output", tmp_path / "again"))[0] == 0
    assert manifest.read(tmp_path / "again")["outputs"] == first
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "one.png").write_bytes(next((tmp_path / "classes" / "circle").iterdir()).read_bytes())
    (tmp_path / "runs").mkdir()
    (tmp_path / "out").rename(tmp_path / "runs" / "zero_shot")
    status, said, err = run(
        "predict",
        "--runs",
        tmp_path / "runs",
        "--node",
        "zero_shot",
        "--data",
        tmp_path / "new",
        "--output",
        tmp_path / "said.jsonl",
    )
    assert status == 0, err
    assert json.loads((tmp_path / "said.jsonl").read_text())["said"]["label"] in ("circle", "square")


def test_random_weights_say_something_else(run, tmp_path, parent):
    assert run("zero_shot", *flags(tmp_path, parent))[0] == 0
    (tmp_path / "out").rename(tmp_path / "own")
    assert run("zero_shot", *flags(tmp_path, parent, "--init", "random"))[0] == 0
    said = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("own", "out")]
    assert said[0] != said[1]


def test_the_loss_is_that_of_the_labels_by_their_weights(parent):
    task = tasks.load("zero_shot", {"prompts": ["a {}"]})
    model = task.load_model(str(parent), ["circle", "square", "number"]).eval()
    batch = {"pixel_values": torch.rand(2, 3, 32, 32), "label": torch.tensor([2, 0]), "weight": torch.tensor([1.0, 3.0])}
    with torch.no_grad():
        likely = task.logits(model, batch).softmax(-1)
        found = float(task.losses(model, batch)["loss"])
    assert found == pytest.approx(-float(likely[0, 2].log()) - 3 * float(likely[1, 0].log()), rel=1e-4)


def test_it_is_trained_on_labels_too(run, tmp_path, parent):
    given = flags(tmp_path, parent, "--max_steps", "12", "--learning_rate", "1e-3", "--per_device_train_batch_size", "8")
    status, _, err = run("finetune", *given)
    assert status == 0, err
    before, after = load_file(parent / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(before["text_projection.weight"], after["text_projection.weight"])


def test_the_picture_tower_of_clip_is_probed(run, tmp_path, parent):
    given = flags(tmp_path, parent, "--max_steps", "3", "--strategy", "frozen", "--per_device_train_batch_size", "8")
    given[given.index("zero_shot")] = "image_classification"
    given[given.index("--task_options") + 1] = "{}"
    status, _, err = run("finetune", *given)
    assert status == 0, err
    before, after = load_file(parent / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    tower = {name.removeprefix("vision_model."): value for name, value in before.items() if name.startswith("vision_model.emb")}
    assert tower
    assert all(torch.equal(after[f"vit.{name}"], value) for name, value in tower.items())


@pytest.mark.parametrize(
    ("kind", "options", "more", "said"),
    [
        ("zero_shot", "prompts: [a picture]", [], "prompts: 'a picture' has no {}, where the class belongs"),
        ("zero_shot", "prompts: []", [], "prompts: give one at least"),
        ("zero_shot", "names: {dog: hound}", [], "names: 'dog' is no label of these rows"),
        ("zero_shot", PROMPTS, ["--max_length", "64"], "max_length: is not read by the task zero_shot"),
        ("finetune", PROMPTS, ["--strategy", "frozen"], "strategy: frozen leaves nothing to train"),
        ("finetune", PROMPTS, ["--strategy", "last_n"], "has no 2 layers of its own to choose from"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(run, tmp_path, parent, kind, options, more, said):
    status, _, err = run(kind, *flags(tmp_path, parent, *more, options=options))
    assert (status, said in err, "Traceback" in err) == (2, True, False), err


def test_a_model_that_reads_no_texts_is_refused(run, tmp_path):
    from tests.test_image_objectives import flags as of_pictures

    assert run("pretrain", *of_pictures("simclr", tmp_path, "--max_steps", "1"))[0] == 0
    (tmp_path / "out").rename(tmp_path / "simclr")
    status, _, err = run("zero_shot", *flags(tmp_path, tmp_path / "simclr"))
    assert (status, "takes dual_encoder" in err) == (2, True), err


def test_pretraining_and_prompts_go_together(run, tmp_path):
    """From captions alone to classes, as a chain."""
    assert run("pretrain", *pretraining(tmp_path, "--max_steps", "2"))[0] == 0
    (tmp_path / "out").rename(tmp_path / "clip")
    status, _, err = run("zero_shot", *flags(tmp_path, tmp_path / "clip"))
    assert status == 0, err

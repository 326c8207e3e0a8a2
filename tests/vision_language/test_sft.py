"""SFT of a model that sees: what is trained, dropped, resumed and refused, and two processes."""

import json

import pytest
import torch

from pipeline.chain import manifest
from pipeline.models import vision
from tests.conftest import mostly_slow
from tests.vision_language import (
    encoded,
    flags,
    flags_of_dpo,
    flags_of_rlhf,
    killed_ends_as,
    opened,
    part,
    rows_of,
    same,
    two_train_as_one,
)


def test_a_row_with_a_picture_is_dropped_and_never_cut(run, made, picture_data, tmp_path):
    _, tokenizer, image_inputs = opened(made / "sft")
    shortest = min(len(encoded(row, tokenizer, image_inputs)["input_ids"]) for row in rows_of(picture_data))
    status, _, err = run("sft", *flags(made, picture_data, "--max_length", str(shortest - 1), "--output", tmp_path / "short"))
    assert status == 0, err
    counted = manifest.read(tmp_path / "short")["recipe"]
    assert counted["dropped"] == {f"longer than max_length {shortest - 1}": len(rows_of(picture_data))}
    assert counted["kept"] in (2, 3)  # texts


def test_lora_trains_the_projector_and_leaves_the_tower(made, picture_data):
    before, after = vision.encoder(str(picture_data / "tower")).state_dict(), part(made / "sft", "vision_tower")
    assert all(torch.equal(value, after[f"model.vision_tower.{key}"]) for key, value in before.items() if "pooler" not in key)
    adapter = json.loads((made / "sft" / "adapter" / "adapter_config.json").read_text())
    assert adapter["modules_to_save"] == ["multi_modal_projector"]
    assert all("vision_tower" not in name and "projector" not in name for name in adapter["target_modules"])
    record = manifest.read(made / "sft")
    assert record["family"] == "vision_language"
    assert [entry["role"] for entry in record["parents"]] == ["parent", "vision"]


@pytest.mark.parametrize(
    ("more", "moved"),
    [
        (["--method", "projector"], {"multi_modal_projector"}),
        (["--method", "full"], {"multi_modal_projector", "language_model"}),
        (["--tower", "trained"], {"multi_modal_projector", "language_model", "vision_tower"}),
        (["--method", "full", "--tower", "trained"], {"multi_modal_projector", "language_model", "vision_tower"}),
    ],
)
def test_what_is_trained_is_configuration(run, made, picture_data, tmp_path, more, moved):
    status, _, err = run("sft", *flags(made, picture_data, *more, "--output", tmp_path / "next", parent="sft"))
    assert status == 0, err
    names = ("multi_modal_projector", "language_model", "vision_tower")
    assert {name for name in names if not same(part(made / "sft", name), part(tmp_path / "next", name))} == moved


@pytest.mark.parametrize("parent", mostly_slow(["pretrain", "sft"], "pretrain"))
def test_a_control_has_a_tower_with_random_weights(run, made, picture_data, tmp_path, parent):
    flagged = flags(made, picture_data, "--init", "random_tower", "--output", tmp_path / "control", parent=parent)
    assert run("sft", *flagged)[0] == 0
    assert not same(part(made / "sft", "vision_tower"), part(tmp_path / "control", "vision_tower"))


@pytest.mark.parametrize("method", mostly_slow(["lora", "projector"], "lora"))
def test_a_killed_stage_ends_with_the_same_weights(run, made, picture_data, tmp_path, monkeypatch, method):
    more = ["--method", method, "--save_steps", "1", "--max_steps", "3"]
    assert run("sft", *flags(made, picture_data, *more, "--output", tmp_path / "whole"))[0] == 0
    killed_ends_as(tmp_path / "whole", run, monkeypatch, "sft", flags(made, picture_data, *more), 4)


@pytest.mark.parametrize("method", mostly_slow(["lora", "full", "projector"], "projector"))
def test_a_batch_without_pictures_trains_in_two_processes_as_in_one(run, made, picture_data, tmp_path, method):
    two_train_as_one(run, made, picture_data, tmp_path, "multi_modal_projector", "--method", method)


@pytest.mark.parametrize(
    ("stage", "more", "fault"),
    [
        ("sft", ["--tower", ""], "is a model of family vision, but sft takes no vision here"),
        ("sft", ["--parent", "{made}/sft"], "the parent has a tower already; leave it out"),
        ("sft", ["--vision", "{made}/pretrain"], "but sft takes vision or masked_vision or dual_encoder as its vision"),
        ("sft", ["--vision_feature_layer", "-9"], "vision_feature_layer: -9: the tower has 2 layers"),
        ("sft", ["--method", "rows"], "method: rows trains tokens by name"),
        ("sft", ["--method", "projector", "--tower", "trained"], "tower: trained: method: projector trains nothing but"),
        (
            "dpo",
            ["--parent", "{made}/pretrain", "--data", "{picture_data}/pairs.jsonl"],
            "but dpo takes vision_language as its parent",
        ),
        ("rlhf", ["--tower", ""], "sft made a model of family vision_language, but rlhf takes causal as its parent"),
        ("rlhf", ["--use_vllm", "true"], "use_vllm: true: samples without the pictures of a prompt"),
        ("rlhf", ["--rewards", "{{}}"], "rewards: a reward model reads no pictures"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(run, made, picture_data, tmp_path, stage, more, fault):
    words = [str(word).format(made=made, picture_data=picture_data) for word in more]
    given = {"sft": flags, "dpo": flags_of_dpo, "rlhf": flags_of_rlhf}[stage](made, picture_data)
    status, out, err = run(stage, *given, *words, "--output", tmp_path / "out")
    assert status == 2
    assert fault in out + err


def test_pictures_for_a_model_that_sees_none_are_refused(run, made, picture_data, tmp_path):
    given = [
        "--parent",
        made / "pretrain",
        "--data",
        picture_data / "chats.jsonl",
        "--chat_template",
        "chatml.jinja",
        "--max_length",
        "64",
    ]
    status, out, err = run("sft", *given, "--output", tmp_path / "out")
    assert status == 2
    assert "rows hold pictures, and the model sees none" in out + err

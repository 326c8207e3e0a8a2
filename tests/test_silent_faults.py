"""Faults that training by the libraries' defaults goes through without a word: each ends in one plain line before the first step."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import flags_of


@pytest.fixture
def broken(chain, tmp_path):
    """Copy the SFT model of a small chain, change its weights or its configuration, and return the folder."""

    def make(weights=lambda found: found, **settings):
        folder = shutil.copytree(chain / "sft", tmp_path / "broken")
        (folder / "manifest.json").unlink()
        found = weights(load_file(folder / "model.safetensors"))
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "model.safetensors", {"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return folder

    return make


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """Small files by the stage that reads them."""
    path = tmp_path_factory.mktemp("thumbs") / "thumbs.jsonl"
    pairs = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    thumbs = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs
        for side in ("chosen", "rejected")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in thumbs))
    return {"sft": data / "chats.jsonl", "dpo": data / "pairs.jsonl", "reward": data / "pairs.jsonl", "kto": path}


def without(name):
    return lambda found: {key: tensor for key, tensor in found.items() if name not in key}


@pytest.mark.parametrize("objective", ["mlm", "rtd", "contrastive", "span_corruption", "denoising"])
def test_layers_that_a_bare_body_has_no_place_for_are_told(tmp_path, objective):
    import transformers

    from pipeline.models import loading
    from pipeline.system.errors import UserError
    from tests.test_tasks import parent

    parent(tmp_path / "model", objective)
    assert loading.from_pretrained(transformers.AutoModel, str(tmp_path / "model"))
    path = tmp_path / "model" / "config.json"
    found = json.loads(path.read_text())
    path.write_text(
        json.dumps(found | {name: 1 for name in ("num_hidden_layers", "num_layers", "encoder_layers") if name in found})
    )
    with pytest.raises(UserError, match="which would be left out"):
        loading.from_pretrained(transformers.AutoModel, str(tmp_path / "model"))


def test_quantised_weights_are_refused(broken):
    from pipeline.models import checkpoint
    from pipeline.system.errors import UserError

    with pytest.raises(UserError, match=r"its weights are quantised \(gptq\)"):
        checkpoint.load(str(broken(quantization_config={"quant_method": "gptq", "bits": 4})))


def test_a_parent_of_nan_is_refused_by_name(broken):
    from pipeline.models import checkpoint
    from pipeline.system.errors import UserError

    folder = broken(
        lambda found: {name: value * float("nan") if "0.mlp.up" in name else value for name, value in found.items()}
    )
    with pytest.raises(UserError, match=r"model.layers.0.mlp.up_proj.weight hold numbers that are not finite"):
        checkpoint.load(str(folder), "teacher")


WRONG = {
    "lost": ({"weights": without("layers.1.mlp.up_proj")}, "its weights lack model.layers.1.mlp.up_proj.weight"),
    "renamed": (
        {"weights": lambda found: {key.replace("layers.1.mlp.up_", "layers.1.mlp.upper_"): tensor for key, tensor in found.items()}},
        "hold model.layers.1.mlp.upper_proj.weight, which would be left out",
    ),
    "layers too many": ({"num_hidden_layers": 1}, "which would be left out"),
    "layers too few": ({"num_hidden_layers": 3}, "which would begin at random"),
    "sizes": ({"intermediate_size": 48}, "have other sizes than config.json says"),
    "vocabulary": ({"vocab_size": 100}, "have other sizes than config.json says"),
    "tokens": (
        {"weights": lambda found: {key: tensor.roll(7, 0) * 30 if "embed_tokens" in key else tensor for key, tensor in found.items()}},
        "weights and tokenizer don't belong together",
    ),
}  # fmt: skip


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "reward"])
@pytest.mark.parametrize("fault", WRONG)
def test_a_parent_that_is_not_whole_is_refused(run, broken, files, tmp_path, stage, fault):
    given, said = WRONG[fault]
    if fault == "tokens" and stage == "reward":
        pytest.skip("a reward model says nothing of tokens")
    parent = broken(**given)
    flags = ("--data", files[stage], "--output", tmp_path / "out", "--max_steps", "1", "--max_length", "64")
    status, _, err = run(stage, "--parent", parent, *flags)
    assert (status, err.count("\n")) == (2, 1), err
    assert said in err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learning_rate", "0", "no weight changes"), ("learning_rate", "-1e-3", "no weight changes"), ("learning_rate", "5", "wrecked"),
        ("num_train_epochs", "0", "no step would be trained"), ("max_steps", "0", "no step would be trained"),
        ("max_grad_norm", "1e-12", "clipped away"), ("weight_decay", "-0.1", "0 to below 1"), ("adam_beta2", "1.0", "0 to below 1"),
        ("adam_epsilon", "1", "would hide the gradients"), ("gradient_accumulation_steps", "0", "at least 1"),
        ("per_device_train_batch_size", "0", "at least 1"),
    ],
)  # fmt: skip
def test_settings_under_which_nothing_is_learned(run, chain, files, tmp_path, key, value, said):
    status, _, err = run(
        "sft", "--parent", chain / "pretrain", "--data", files["sft"], "--output", tmp_path / "out", f"--{key}", value
    )
    assert status == 2
    assert f"{key}: " in err
    assert said in err


def test_a_warm_up_longer_than_the_run_is_told(run, chain, files, tmp_path):
    flags = (
        "--data",
        files["sft"],
        "--output",
        tmp_path / "out",
        "--max_steps",
        "2",
        "--warmup_steps",
        "10",
        "--chat_template",
        "chatml.jinja",
    )
    status, out, _ = run("sft", "--parent", chain / "pretrain", *flags)
    assert status == 0
    assert "warmup_steps: 10 are not over within the 2 steps of the run" in out


def test_a_stage_that_moved_nothing_does_not_say_done(run, chain, files, tmp_path, monkeypatch):
    flags = ("--data", files["sft"], "--output", tmp_path / "out", "--learning_rate", "1e-30")
    status, _, err = run("sft", "--parent", chain / "sft", *flags, "--num_train_epochs", "1")
    assert status == 2
    assert "would have moved no weight by more than about" in err
    monkeypatch.setattr("pipeline.training.rates._ROUNDING", 0)  # which stopped it before the first step
    status, out, err = run("sft", "--parent", chain / "sft", *flags, "--num_train_epochs", "1")
    assert status == 1
    assert "moved no weight by more than rounding; learning_rate is 1e-30; nothing is handed on" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "manifest.json").exists()
    status, out, _ = run("sft", "--parent", chain / "sft", *flags, "--max_steps", "1")
    assert (status, "moved no weight by more than rounding" in out) == (0, True)


def test_a_stage_that_made_its_rows_unlikelier_keeps_the_result_aside(run, chain, files, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.training.rates._WRECKED", 1e9)  # which would stop it before the first step
    wrecks = ("--learning_rate", "0.9", "--lr_scheduler_type", "constant", "--method", "full")
    flags = (
        "--data",
        files["sft"],
        "--output",
        tmp_path / "out",
        "--max_length",
        "64",
        "--per_device_train_batch_size",
        "2",
        *wrecks,
    )
    whole = (*flags, "--num_train_epochs", "0.5")
    status, _, err = run("sft", "--parent", chain / "sft", *whole)
    assert (status, err.count("\n")) == (1, 1), err
    assert "the loss of its own first rows rose from" in err
    assert not (tmp_path / "out" / "manifest.json").exists()
    [kept] = (tmp_path / ".aside").glob("out-*-result")
    assert str(kept) in err
    assert (kept / "model.safetensors").is_file()
    status, _, again = run("sft", "--parent", chain / "sft", *whole)
    assert (status, again) == (1, err)
    status, out, _ = run("sft", "--parent", chain / "sft", *flags, "--max_steps", "12")
    assert (status, "the loss of its own first rows rose from" in out) == (0, True)


def test_measuring_before_and_after_changes_no_random_number_and_finds_only_what_is_clear():
    from pipeline.training import outcome

    assert outcome.worse([1.0, 2.0, 3.0, 2.0], [1.5, 2.6, 3.5, 2.4])
    assert not outcome.worse([1.0, 2.0, 3.0, 2.0], [1.9, 1.2, 3.9, 1.9])
    assert not outcome.worse([1.0, 2.0, 3.0, 2.0], [1.001, 2.001, 3.001, 2.001])
    assert outcome.worse([1.0, 2.0, 3.0, 2.0], [float("nan")] * 4)
    rewards = [{"mean_reward": value} for value in (1.0, 0.9, 1.1, 1.0, 0.2, 0.3, 0.25, 0.2)]
    assert "fell from 1.000 to 0.237" in outcome.less_rewarded(rewards)
    assert not outcome.less_rewarded(rewards[::-1])
    assert not outcome.less_rewarded([{"loss": 1.0}] * 9)
    assert outcome.still([1.0, 2.0, 3.0, 2.0], [1.000001, 2.0, 3.000001, 2.0])
    assert not outcome.still([1.0, 2.0, 3.0, 2.0], [1.0, 2.0, 3.0, 2.001])
    assert not outcome.still([0.0] * 4, [0.0] * 4)  # all that was asked for is there already
    assert "nothing to learn" in outcome.untaught([{"groups": 2, "alike_groups": 2}, {"groups": 1, "alike_groups": 1}])
    assert not outcome.untaught([{"groups": 2, "alike_groups": 2}, {"groups": 1, "alike_groups": 0}])
    assert not outcome.untaught([{"loss": 1.0}])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target_modules", "nothing"], "target_modules: nothing"),
        (["--lr_scheduler_kwargs", "{num_cycles: 3}"], "these settings: get_linear_schedule_with_warmup() got an unexpected keyword argument 'num_cycles'"),
        (["--torch_compile_mode", "max"], "these settings: Unrecognized mode=max"),
        (["--target_modules", "[q_proj, v_prjo]"], "target_modules: no layer of the model is called v_prjo"),
        (["--fsdp", "full_shard"], "in distributed training. (fsdp: True)"),
        (["--report_to", "comet_ml"], "comet"),
        (["--lr_scheduler_type", "lineer"], "lr_scheduler_type: lineer"),
    ],
)  # fmt: skip
def test_what_a_library_refuses_is_a_plain_line_with_the_key(run, chain, files, tmp_path, flags, said):
    given = ("--parent", chain / "sft", "--data", files["sft"], "--output", tmp_path / "out", "--max_length", "64")
    status, _, err = run("sft", *given, *flags)
    assert (status, err.count("\n"), said in err) == (2, 1, True), err


def test_an_adapter_beside_the_weights_is_refused(run, broken, files, tmp_path):
    parent = broken()
    (parent / "adapter_config.json").write_text("{}")
    status, _, err = run("sft", "--parent", parent, "--data", files["sft"], "--output", tmp_path / "out", "--max_steps", "1")
    assert (status, err.count("\n")) == (2, 1)
    assert "adapter_config.json lies beside the weights" in err


def test_sums_of_weights_see_through_an_adapter(chain):
    from peft import LoraConfig, get_peft_model

    from pipeline.models import checkpoint
    from pipeline.training import guards

    model = checkpoint.load(str(chain / "sft"))
    before = guards.weights(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert {**before, **guards.weights(adapted)} == before
    assert guards.weights(adapted.merge_and_unload()) == before
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 1e-3
    assert guards.weights(model) != before


@pytest.mark.parametrize("by", ["the profile", "accelerate"])
def test_sharding_that_would_become_another_training_is_refused(run, chain, data, tmp_path, monkeypatch, by):
    """On a CPU the library trains the whole model in each process, and says nothing."""
    flags = [*flags_of("sft", chain, data, tmp_path / "sft")]
    if by == "the profile":
        flags += ["--fsdp", "full_shard"]
    else:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    status, _, err = run("sft", *flags)
    assert status == 2
    assert "fsdp" in err
    assert "Traceback" not in err
    assert not (tmp_path / "sft" / "manifest.json").exists()


def test_a_head_of_another_model_beside_tied_embeddings_is_refused(run, broken, files, tmp_path):
    """The library unties them, and only logs that."""
    parent = broken(lambda found: found | {"lm_head.weight": torch.randn_like(found["model.embed_tokens.weight"])})
    status, _, err = run("sft", "--parent", parent, "--data", files["sft"], "--output", tmp_path / "sft", "--max_steps", "1")
    assert status == 2
    assert "config.json ties the head to the embeddings" in err


def test_a_head_that_is_saved_beside_the_embeddings_that_it_is_tied_to_is_fine(run, broken, files, tmp_path):
    parent = broken(lambda found: found | {"lm_head.weight": found["model.embed_tokens.weight"].clone()})
    flags = ["--data", files["sft"], "--output", tmp_path / "sft", "--max_steps", "1", "--max_length", "64"]
    status, _, err = run("sft", "--parent", parent, *flags)
    assert status == 0, err

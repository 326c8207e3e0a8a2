"""Frozen weights in fewer bits: in bf16 nothing else is computed, in 4 bits the adapter is merged into the parent's own weights."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.training import frozen
from tests.conftest import flags_of, last, make_quietly

BF16 = ("--bf16", "true", "--use_cpu", "true", "--logging_steps", "1")


def linear(model):
    return {
        name: one
        for name, one in model.state_dict().items()
        if one.dim() == 2 and "embed" not in name and "lm_head" not in name
    }


def logged(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_frozen_layers_in_bf16_compute_what_autocast_computes(stage, chain, data, tmp_path, run, monkeypatch):
    halve, seen = frozen.halve, []

    def watched(model):
        kept = halve(model)
        seen.append({one.dtype for one in linear(model.get_base_model()).values() if "lora" not in str(one.dtype)})
        return kept

    for name, found in (("halved", watched), ("whole", lambda model: {})):
        monkeypatch.setattr(frozen, "halve", found)
        assert run(stage, *flags_of(stage, chain, data, tmp_path / name), *BF16)[0] == 0
    assert torch.bfloat16 in seen[0]
    assert logged(tmp_path / "halved") == logged(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("halved", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_what_is_read_apart_or_trained_stays_whole(chain):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(chain / "pretrain", dtype=torch.float32)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert frozen.can_be_halved(adapted)
    kept = frozen.halve(adapted)
    assert len(kept) == 2 * 7
    assert adapted.get_input_embeddings().weight.dtype == torch.float32
    assert all(one.dtype == torch.float32 for one in adapted.parameters() if one.requires_grad)
    frozen.restore(adapted, kept)
    after = adapted.unload().state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not frozen.can_be_halved(model)  # its checkpoints hold every weight
    assert not frozen.can_be_halved(get_peft_model(model, LoraConfig(target_modules=["q_proj"], use_dora=True)))


def test_without_bitsandbytes_four_bits_are_refused(chain, data, tmp_path, run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more))
    status, _, err = run("sft", *flags_of("sft", chain, data, tmp_path / "sft"), "--load_in_4bit", "true")
    assert (status, "load_in_4bit: true: needs the package bitsandbytes" in err) == (2, True), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--load_in_4bit", "true", "--method", "full"), "load_in_4bit"),
        (("--bnb_4bit_quant_type", "fp4"), "bnb_4bit_quant_type"),
        (("--load_in_4bit", "true", "--init", "random"), "init: random"),
    ],
)
def test_four_bits_of_what_is_trained_are_refused(flags, said, chain, data, tmp_path, run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: True if name == "bitsandbytes" else find(name, *more))
    status, _, err = run("sft", *flags_of("sft", chain, data, tmp_path / "sft"), *flags)
    assert (status, said in err) == (2, True), err


@pytest.fixture(scope="module")
def wide(data, tmp_path_factory):
    """A chain whose matrices bitsandbytes reads rightly on a CPU."""
    folder = tmp_path_factory.mktemp("wide")
    for name in ("pretrain", "sft"):
        make_quietly(name, *last([*flags_of(name, folder, data), *(["--hidden_size", "64"] if name == "pretrain" else [])]))
    return folder


def test_widths_that_a_cpu_reads_wrongly_are_refused(chain, data, tmp_path, run):
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    for width, right in ((64, True), (32, False)):  # of bitsandbytes 0.50.2; once both are right the refusal can go
        weights = torch.randn(width, width)
        back = functional.dequantize_4bit(*functional.quantize_4bit(weights.clone(), quant_type="nf4"))
        assert (float((back - weights).norm() / weights.norm()) < 0.1) == right
    status, _, err = run("sft", *flags_of("sft", chain, data, tmp_path / "sft"), "--load_in_4bit", "true")
    assert (status, "is 32 wide; on a CPU" in err) == (2, True), err


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_an_adapter_on_four_bits_is_merged_into_the_parents_own_weights(stage, wide, data, tmp_path, run, monkeypatch):
    pytest.importorskip("bitsandbytes")
    from peft import PeftModel

    masters, dtypes = frozen.masters, set()

    def watched(model):
        masters(model)
        dtypes.update(one.dtype for one in model.parameters() if one.requires_grad)

    monkeypatch.setattr(frozen, "masters", watched)
    status, out, err = run(stage, *last([*flags_of(stage, wide, data, tmp_path / stage), "--load_in_4bit", "true"]))
    assert status == 0, err
    assert "merges into the parent's own weights" in out
    assert dtypes == {torch.float32}
    record = json.loads((tmp_path / stage / "manifest.json").read_text())
    assert 0 < record["quantization_error"] < 0.1
    assert record["merge_error"] < 1e-3
    config = json.loads((tmp_path / stage / "config.json").read_text())
    assert "quantization_config" not in config
    parent = {"sft": "pretrain", "dpo": "sft"}[stage]
    base = AutoModelForCausalLM.from_pretrained(wide / parent, dtype=torch.float32)
    made = load_file(tmp_path / stage / "model.safetensors")
    if base.get_input_embeddings().weight.shape[0] < made["model.embed_tokens.weight"].shape[0]:
        base.resize_token_embeddings(made["model.embed_tokens.weight"].shape[0])
    merged = PeftModel.from_pretrained(base, tmp_path / stage / "adapter").merge_and_unload().state_dict()
    moved = max(float((merged[name] - made[name]).abs().max()) for name in linear(base) if name in made)
    assert moved < 1e-6


def test_a_stage_that_samples_keeps_its_layers_whole(speaker, tmp_path, run, monkeypatch):
    monkeypatch.setattr(frozen, "halve", lambda model: pytest.fail("its answers are sampled without autocast"))
    flags = ["--parent", speaker / "sft", "--output", tmp_path / "rlhf", "--data", speaker / "prompts.jsonl"]
    sampled = [
        "--rewards",
        "{regex: {pattern: did}}",
        "--max_completion_length",
        "8",
        "--num_generations",
        "2",
        "--max_steps",
        "1",
    ]
    status, _, err = run("rlhf", *flags, *sampled, "--per_device_train_batch_size", "4", *BF16)
    assert status == 0, err

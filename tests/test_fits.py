"""Nodes that can't fit into memory are refused before what they descend from is trained, with the smallest change that would fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline import objectives
from pipeline.chain import check, fits, profile, stages
from pipeline.system import hardware

MEANT = [(name, architecture) for name in objectives.known() for architecture in objectives.load(name).architectures]


@pytest.fixture
def nodes(tmp_path):
    """A profile on a model folder of 4,000,000 numbers, of which nothing but the header is read."""
    parent = tmp_path / "parent"
    parent.mkdir()
    save_file(
        {"one": torch.zeros(1000, 3000, dtype=torch.bfloat16), "other": torch.zeros(1_000_000, dtype=torch.bfloat16)},
        parent / "model.safetensors",
    )
    folder = tmp_path / "nodes"
    folder.mkdir()
    common = f"parent: {parent}\nchat_template: chatml.jinja\nmax_length: 64\n"
    (folder / "sft.yaml").write_text(f"{common}method: full\n")
    (folder / "sft-lora.yaml").write_text(common)
    (folder / "dpo.yaml").write_text("parent: sft-lora\nmax_length: 64\nmethod: full\n")
    return profile.load(folder)


def said(whole, name, room, **more):
    node = whole.nodes[name]
    options, arguments = node.stage.split(node.settings | more)
    return fits.fault(node, fits.parameters(whole, node), options, arguments, room)


@pytest.mark.parametrize(("name", "room", "remedy"), [
    ("sft", 64_000_000, ""), ("sft", 63_000_000, "optim: adafactor"), ("sft", 31_000_000, "method: lora trains"), ("sft-lora", 16_000_000, ""),
    ("sft", 15_000_000, "method: lora and load_in_4bit: true"), ("sft-lora", 15_000_000, "out, but"), ("sft-lora", 1_000_000, "a smaller model"),
    ("dpo", 63_000_000, "optim: adafactor"),
])  # fmt: skip
def test_what_is_certain_not_to_fit_is_told_with_the_smallest_change_that_would(nodes, name, room, remedy):
    found = said(nodes, name, room)
    if remedy == "out, but":
        remedy = "load_in_4bit: true holds them in 0.0 GB"
    assert remedy in found
    assert bool(found) == bool(remedy)
    if found:
        assert "4,000,000 parameters" in found
        assert f"{name}.yaml: " in found


def test_an_optimizer_that_keeps_less_and_weights_in_four_bits_count_as_such(nodes):
    assert not said(nodes, "sft", 33_000_000, optim="adafactor")
    assert not said(nodes, "sft-lora", 2_000_000, load_in_4bit=True)
    assert not said(nodes, "sft", 1, fsdp="full_shard")


def test_of_a_launch_of_several_processes_nothing_is_said(nodes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not said(nodes, "sft", 1)


def test_a_broken_header_is_left_to_whoever_loads_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert fits.stored(tmp_path) == 0
    assert fits.stored(tmp_path / "nowhere") == 0


@pytest.mark.parametrize(("name", "architecture"), MEANT)
def test_a_new_model_has_at_least_the_parameters_that_are_counted(name, architecture, tokenizers):
    objective = objectives.load(name)
    sizes = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2}
    tokenizer = tokenizers[objective.tokenizer_type]
    processor = tokenizer if objective.family != "dual_encoder" else objective.new_processor(lambda: tokenizer)
    model = objective.build_model(processor, architecture, max_position_embeddings=64, **sizes)
    stage = stages.load("pretrain")
    counted = stage.parameters(stage.Options(objective=name, architecture=architecture, **sizes))
    assert counted <= sum(one.numel() for one in model.parameters())
    assert counted > 0 or objective.family == "vectors"


def test_the_chain_is_refused_before_its_first_node_trains(tmp_path, monkeypatch, data):
    folder = tmp_path / "nodes"
    folder.mkdir()
    (tmp_path / "text.yaml").write_text(f"type: text\nsources:\n  - files: {data / 'text.jsonl'}\n")
    (folder / "pretrain.yaml").write_text(
        f"recipe: {tmp_path / 'text.yaml'}\nhidden_size: 32\nnum_hidden_layers: 2\nnum_attention_heads: 2\n"
    )
    (folder / "sft.yaml").write_text("chat_template: chatml.jinja\nmethod: full\nparent: pretrain\n")
    monkeypatch.setattr(hardware, "room", lambda: 200_000)
    found = {one.name: one.faults for one in check.examine(profile.load(folder), tmp_path / "runs", room=hardware.room())}
    assert "24,576 parameters need" in found["pretrain"][0]
    assert "optim: adafactor" in found["sft"][0]
    assert not any("memory" in fault for one in check.examine(profile.load(folder), tmp_path / "runs") for fault in one.faults)
    assert json.dumps(found)

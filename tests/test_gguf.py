"""A node as a GGUF file: its answers in llama.cpp are the node's, and a file whose answers are others is not kept."""

import json
import shutil

import pytest

from pipeline.chain import manifest
from pipeline.models import gguf
from pipeline.system import hashes
from tests.test_chat import QUESTION, answers

pytest.importorskip("gguf", reason="gguf is not installed: make setup-data")


@pytest.fixture
def nodes(voices, tmp_path):
    """Stages that answer in many ways, beside an evaluation that asked them something."""
    folder = shutil.copytree(voices, tmp_path / "chain")
    (folder / "evaluate.json").write_text(json.dumps({"inputs": "0", "samples": [{"prompt": QUESTION, "answers": {}}]}))
    return folder


def refreshed(folder, **changes):
    """Change a node's configuration as if it had been made so."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    manifest.write_json(folder / manifest.NAME, manifest.read(folder) | {"files": hashes.files(folder)})


@pytest.mark.parametrize(("node", "kind"), [("dpo", "f32"), ("dpo", "f16"), ("pretrain", "f32")])
def test_llama_cpp_gives_the_nodes_answers(run, nodes, node, kind):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: make setup-data")
    status, out, err = run("export", "--runs", nodes, "--node", node, "--type", kind)
    assert (status, err) == (0, "")
    assert "6 of 6 greedy answers of llama.cpp are the node's" in out
    assert sorted(path.name for path in nodes.glob("*.gguf")) == [f"{node}.gguf"]


def test_llama_cpp_gives_the_answers_of_a_qwen3(nodes, tmp_path):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: make setup-data")
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    folder, sizes = shutil.copytree(nodes / "dpo", tmp_path / "qwen3"), json.loads((nodes / "dpo" / "config.json").read_text())
    alike = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "eos_token_id",
        "pad_token_id",
    )
    config = Qwen3Config(
        **{key: sizes[key] for key in alike},
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, weights in model.named_parameters():
        if "norm" in name:  # each head's norms begin as ones, which would hide one that was left out
            torch.nn.init.uniform_(weights, 0.5, 2)
    model.save_pretrained(folder)
    gguf.fits(folder)
    gguf.write(folder, tmp_path / "qwen3.gguf", "f32")
    found = gguf.parity(folder, tmp_path / "qwen3.gguf", [QUESTION, "Who are you?", "And the dog?"], 12)
    assert (found.runtime, found.differ) == ("llama.cpp", [])


def test_without_llama_cpp_the_file_is_read_back_and_that_is_said(run, nodes, monkeypatch):
    real = gguf.importlib.util.find_spec
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else real(name))
    status, out, _ = run("export", "--runs", nodes)
    assert status == 0
    assert "6 of 6 greedy answers of transformers are the node's; make setup-data installs xllamacpp" in out


def test_the_weights_are_those_of_the_node(nodes):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf.write(nodes / "dpo", nodes / "x.gguf", "f32")
    how = {"gguf_file": "x.gguf", "dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    wanted = AutoModelForCausalLM.from_pretrained(nodes / "dpo").state_dict()
    found = AutoModelForCausalLM.from_pretrained(nodes, **how).state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], weights) for name, weights in wanted.items())
    read, ours = AutoTokenizer.from_pretrained(nodes, gguf_file="x.gguf"), AutoTokenizer.from_pretrained(nodes / "dpo")
    text = "The cat's 12 hens,  中文\n<|im_end|>été"
    assert read.encode(text, add_special_tokens=False) == ours.encode(text, add_special_tokens=False)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert read.apply_chat_template(turns, tokenize=False) == ours.apply_chat_template(turns, tokenize=False)
    assert "generation" not in read.chat_template.replace("add_generation_prompt", "")


@pytest.mark.parametrize("spoilt", ["_paired", "_vocabulary"])
def test_a_file_whose_answers_are_others_is_not_kept(run, nodes, monkeypatch, spoilt):
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: make setup-data")
    real = gguf._vocabulary

    def shifted(writer, folder, tokenizer, size):
        tokenizer.chat_template = tokenizer.chat_template.replace("user", "person").replace("message['role']", "'x'")
        real(writer, folder, tokenizer, size)

    monkeypatch.setattr(gguf, spoilt, {"_paired": lambda weights, heads: weights, "_vocabulary": shifted}[spoilt])
    status, _, err = run("export", "--runs", nodes)
    assert status == 1
    assert "of 6 greedy answers of llama.cpp are not the node's, so no file is kept; " in err
    assert not list(nodes.glob("*.gguf"))


def test_what_can_not_be_written_is_one_plain_line(run, nodes, monkeypatch):
    for flags, said in (
        (["--node", "none"], "not finished; finished are pretrain, sft, dpo"),
        (["--type", "q2"], "--type: expected f32 or f16, found 'q2'"),
        (["--tipe", "f16"], "--tipe: unknown flag"),
    ):
        status, _, err = run("export", "--runs", nodes, *flags)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
    refreshed(nodes / "sft", model_type="qwen2")
    status, _, err = run("export", "--runs", nodes, "--node", "sft")
    assert (status, err.count("\n")) == (2, 1)
    assert "qwen2: only Llama's and Qwen3's with plain rotary embeddings, no biases and no window are written" in err
    (nodes / "sft" / "config.json").write_text("{}")
    status, _, err = run("export", "--runs", nodes, "--node", "sft")
    assert status == 2
    assert "config.json is not the file that was made" in err
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    status, _, err = run("export", "--runs", nodes)
    assert (status, err) == (2, "export: the package gguf is not installed; make setup-data installs it\n")


def test_the_voices_are_not_all_the_same(nodes):
    """Else the tests above would pass with any weights."""
    said = [answers(nodes / "dpo", ("user", question), length=8) for question in (QUESTION, "Who are you?", "And the dog?")]
    assert len(set(said)) == 3

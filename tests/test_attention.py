"""Packed rows under the kernel that trains: apart, joined to one row where flash kernels want that, of one shape where compiled."""

import contextlib
import functools
import json
import types

import pytest
import torch
from datasets import Dataset
from transformers import LlamaModel, OPTConfig, OPTForCausalLM

from pipeline.data.batches import CausalCollator
from pipeline.system.errors import UserError
from pipeline.training import attention
from tests.conftest import flags_of
from tests.test_batches import llama

ROWS = [
    {"input_ids": [3, 9, 4, 1, 5, 6, 7], "labels": [-100, 9, 4, 1, -100, 6, 7], "seq_lengths": [4, 3]},
    {"input_ids": [2, 8, 10], "labels": [-100, 8, 10], "seq_lengths": [3]},
]


def forgetful():
    """A Llama that is told nothing of where documents begin."""
    model = llama()
    forward = model.forward
    model.forward = lambda *given, position_ids=None, **named: forward(*given, **named)
    return model


def as_sdpa(model, forward, *given, **named):
    """Compute with the kernel that is here, whatever the configuration says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.config), "_attn_implementation", "sdpa")
        return forward(model, *given, **named)


def test_joined_rows_have_the_loss_of_the_same_rows_apart():
    model = llama().eval()
    apart, joined = CausalCollator(0)(ROWS), CausalCollator(0, flat=True)(ROWS)
    assert joined["input_ids"].tolist() == [[3, 9, 4, 1, 5, 6, 7, 2, 8, 10]]
    assert joined["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]]
    with torch.no_grad():
        losses = [model(**batch, use_cache=False).loss.item() for batch in (apart, joined)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_rows_of_compiled_code_have_one_shape():
    assert CausalCollator(0, length=9)(ROWS)["input_ids"].shape == (2, 9)
    found = CausalCollator(0, length=9, flat=True)(ROWS)
    assert found["input_ids"].shape == found["position_ids"].shape == (1, 18)
    assert found["labels"][0, 10:].tolist() == [-100] * 8
    assert CausalCollator(0, length=9)([{"input_ids": [1, 2], "labels": [1, 2]}])["input_ids"].shape == (1, 2)


def test_a_model_that_lets_documents_see_each_other_is_found_out():
    torch.manual_seed(0)
    opt = OPTForCausalLM(
        OPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32)
    )
    assert attention.keeps_apart(llama())
    assert not attention.keeps_apart(opt)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_influence_of_another_document_is_none_or_large(rows):
    assert attention.influence(llama(), rows) == 0
    assert attention.influence(forgetful(), rows) == 1


@pytest.mark.parametrize(("made", "kernel", "device", "refused"), [
    (llama, "flash_attention_2", "cpu", False), (forgetful, "flash_attention_2", "cpu", True), (forgetful, "sdpa", "cuda", True),
    (forgetful, "sdpa", "cpu", False),
])  # fmt: skip
def test_packed_rows_are_asked_again_under_the_kernel_that_trains(made, kernel, device, refused, monkeypatch):
    model = made()
    monkeypatch.setattr(type(model.config), "_attn_implementation", kernel)
    monkeypatch.setattr(LlamaModel, "forward", functools.partialmethod(as_sdpa, LlamaModel.forward))
    asked = types.SimpleNamespace(
        train_dataset=Dataset.from_list(ROWS), args=types.SimpleNamespace(device=torch.device(device)), data_collator=None,
        compute_loss_context_manager=contextlib.nullcontext,
    )  # fmt: skip
    with pytest.raises(UserError, match="see each other") if refused else contextlib.nullcontext():
        attention.isolates(asked, model)


def test_a_kernel_that_is_not_there_is_refused(chain, data, tmp_path, run):
    status, _, err = run("sft", *flags_of("sft", chain, data, tmp_path / "sft"), "--attn_implementation", "flash_attention_2")
    assert (status, "attn_implementation: flash_attention_2: the library can't have it here" in err) == (2, True), err


def test_a_chosen_kernel_trains_and_an_older_node_stays_up_to_date(chain, data, tmp_path, run):
    flags = flags_of("sft", chain, data, tmp_path / "sft")
    assert run("sft", *flags)[0] == 0
    assert run("sft", *flags, "--attn_implementation", "eager")[0] == 0
    before, after = (json.loads((folder / "manifest.json").read_text()) for folder in (chain / "sft", tmp_path / "sft"))
    assert before["inputs"] != after["inputs"]
    assert "attn_implementation" not in before["request"]["options"]
    assert after["request"]["options"]["attn_implementation"] == "eager"


def test_a_model_is_merged_and_saved_under_a_kernel_that_a_cpu_has(monkeypatch):
    from peft import LoraConfig, get_peft_model

    for model in (llama(), get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))):
        model.config._attn_implementation_internal = "flash_attention_2"
        trainer = types.SimpleNamespace(compute_loss_context_manager=lambda: torch.autocast("cpu", torch.bfloat16))
        with attention.computing(trainer, model):
            assert torch.is_autocast_enabled("cpu")
        attention.plain(model)
        assert model.config._attn_implementation == "sdpa"
        with attention.computing(trainer, model):
            assert not torch.is_autocast_enabled("cpu")

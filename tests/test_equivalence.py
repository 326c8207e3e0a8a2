"""What must leave the result as it was: accumulation, merging, resuming, and another folder."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.chain import manifest
from pipeline.models import checkpoint
from pipeline.training.adapter import AdapterOptions
from tests.conftest import CHAIN, SMALL, flags_of


def weights(folder):
    return load_file(folder / "model.safetensors")


def distance(left, right):
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.parametrize(
    ("name", "shape", "parent"), [("pretrain", "text", None), ("sft", "chats", "pretrain"), ("dpo", "pairs", "sft")]
)
def test_eight_steps_of_one_equal_one_step_of_eight(run, chain, data, tmp_path, name, shape, parent):
    """Plain gradient descent, so that the weights move by the gradient itself."""
    where = ["--parent", chain / parent] if parent else []
    flags = [
        *SMALL[name],
        *where,
        "--data",
        data / f"{shape}.jsonl",
        "--optim",
        "sgd",
        "--learning_rate",
        "1",
        "--max_grad_norm",
        "0",
    ]
    flags += ["--max_steps", "1"]
    before = weights(chain / parent) if parent else None
    for size, steps in ((8, 1), (1, 8)):
        status, _, err = run(
            name,
            *flags,
            "--output",
            tmp_path / str(size),
            "--per_device_train_batch_size",
            size,
            "--gradient_accumulation_steps",
            steps,
        )
        assert status == 0, err
    moved = distance(before, weights(tmp_path / "8")) if before else 1.0
    assert moved > 1e-5
    assert distance(weights(tmp_path / "8"), weights(tmp_path / "1")) < 2e-3 * moved


def test_the_same_inputs_give_the_same_bytes_in_another_folder(run, chain, data, tmp_path):
    for name in CHAIN:
        assert run(name, *flags_of(name, chain, data, tmp_path / "elsewhere" / name))[0] == 0
        assert manifest.read(tmp_path / "elsewhere" / name)["outputs"] == manifest.read(chain / name)["outputs"]


def test_merged_equals_adapter(chain):
    from peft import PeftModel

    merged = AutoModelForCausalLM.from_pretrained(chain / "sft")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chain / "pretrain"), chain / "sft" / "adapter")
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        assert (merged(ids).logits - adapted(ids).logits).abs().max() < 1e-5
        assert (merged(ids).logits - AutoModelForCausalLM.from_pretrained(chain / "pretrain")(ids).logits).abs().max() > 1e-4


def test_sft_trains_the_chat_tokens_and_no_other_embedding(chain):
    before, after = (
        weights(chain / "pretrain")["model.embed_tokens.weight"],
        weights(chain / "sft")["model.embed_tokens.weight"],
    )
    assert (before - after).abs().max(dim=1).values.nonzero().flatten().tolist() == [2, 3]


def test_a_merge_that_moves_the_model_is_refused(chain):
    from peft import get_peft_model

    model = AutoModelForCausalLM.from_pretrained(chain / "pretrain")
    adapted = get_peft_model(model, AdapterOptions(r=4, lora_alpha=8).adapter())
    adapted.merge_and_unload = lambda: AutoModelForCausalLM.from_pretrained(chain / "sft")
    with pytest.raises(RuntimeError, match="the merged model is not the adapter's"):
        checkpoint.merge(adapted, {"input_ids": [5, 6, 7, 8]})


def test_an_untied_head_learns_its_chat_tokens(tmp_path):
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            tie_word_embeddings=False,
        )
    )
    config = AdapterOptions(r=4, lora_alpha=8).adapter(model, [2, 3])
    assert config.trainable_token_indices == {"embed_tokens": [2, 3], "lm_head": [2, 3]}
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(0.5)
    _, moved = checkpoint.merge(adapted, {"input_ids": [1, 2, 3, 4]})
    assert moved < 1e-5

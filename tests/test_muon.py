"""Muon: what it moves and how, beside torch's own and AdamW; kills; where it is refused."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from pipeline.chain import manifest
from pipeline.system.optimizers import MUON, least_state
from pipeline.training import muon, room
from tests.conftest import SMALL as SIZES
from tests.conftest import flags_of, gone_on_after_a_kill
from tests.forked import launched
from tests.objectives import flags
from tests.test_negatives import moved

SMALL = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 2}


def causal(kind="llama"):
    torch.manual_seed(0)
    more = {} if kind == "gpt2" else {"intermediate_size": 48, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, hidden_size=16, **SMALL, **more))


def with_gradients(model):
    ids = torch.randint(60, (4, 12), generator=torch.Generator().manual_seed(1))
    model(input_ids=ids, labels=ids).loss.backward()
    return model


def turned(model):
    found = muon.matrices_of(model)
    return {name for name, weight in model.named_parameters() if id(weight) in found}


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 64, 64)])
def test_a_matrix_becomes_nearly_orthogonal(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = muon.orthogonal(matrices)
    assert found.shape == matrices.shape
    sizes = torch.linalg.svdvals(found)
    assert (sizes[:, : -shape[2] // 8] > 0.4).all()  # a square one has a few that are nearly 0
    assert (sizes < 1.3).all()
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert (torch.nn.functional.cosine_similarity(found.flatten(1), (left @ right).flatten(1)) > 0.97).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_matrices_of_layers_are_turned_and_nothing_else(kind):
    model = causal(kind)
    found = turned(model)
    assert len(found) == 2 * (7 if kind == "llama" else 4)
    assert all(".layers." in name or ".h." in name for name in found)
    assert not any("norm" in name or "embed" in name or "wte" in name or "lm_head" in name for name in found)


def test_a_table_within_a_layer_is_not_turned():
    config = AutoConfig.for_model("t5", d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=60)
    found = turned(AutoModelForSeq2SeqLM.from_config(config))
    assert any("SelfAttention.q" in name for name in found)
    assert not any("relative_attention_bias" in name for name in found)


def test_a_step_is_that_of_torch_for_matrices_and_of_adamw_for_the_rest():
    model = causal()
    theirs = copy.deepcopy(model)
    decayed = [name for name, weight in model.named_parameters() if weight.dim() > 1]
    ours = muon.build(model, decayed, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    known = turned(theirs)
    parts = {
        moved: [(name, one) for name, one in theirs.named_parameters() if (name in known) == moved] for moved in (True, False)
    }
    beside = [
        torch.optim.Muon([one for _, one in parts[True]], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": [one], "weight_decay": 0.1 if name in decayed else 0.0} for name, one in parts[False]],
            lr=1e-2, betas=(0.9, 0.95),
        ),
    ]  # fmt: skip
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    for _ in range(3):
        for one, optimizers in ((model, [ours]), (theirs, beside)):
            with_gradients(one)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    expected = dict(theirs.named_parameters())
    for name, one in model.named_parameters():
        moved, wanted = one - before[name], expected[name] - before[name]
        assert (moved - wanted).norm() / wanted.norm() < (0.05 if name in known else 0.02), name  # torch turns them in bf16


def test_what_it_keeps_is_known():
    model = with_gradients(causal())
    optimizer = muon.build(model, [], lr=1e-2, weight_decay=0.1)
    optimizer.step()
    kept = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step"
    )
    assert kept == room.needed(model, MUON)
    assert least_state(MUON) == least_state("adamw_torch") / 2


def test_a_killed_run_goes_on_to_the_same_weights(run, tmp_path):
    given = flags("causal", tmp_path, "--max_steps", "17", "--save_steps", "5", "--optim", MUON, "--learning_rate", "5e-3")
    status, _, err = run("pretrain", *given)
    assert status == 0, err
    record = manifest.read(tmp_path / "out")
    assert record["config"]["optim"] == MUON
    assert gone_on_after_a_kill(run, given, tmp_path / "out") == record["outputs"]
    given[given.index(MUON)] = "adamw_torch"
    status, _, err = run("pretrain", *given, "--output", tmp_path / "adamw")
    assert status == 0, err
    assert manifest.read(tmp_path / "adamw")["outputs"] != record["outputs"]


def test_two_processes_move_the_weights_as_one_does(run, chain, data, tmp_path):
    """The whole gradient is turned, not each process's own: three steps of two with two rows each are those of one with four."""
    given = ["--parent", chain / "pretrain", "--data", data / "text.jsonl", *SIZES["pretrain"][8:], "--max_steps", "3"]
    given += ["--optim", MUON]
    one, two = tmp_path / "one", tmp_path / "two"
    status, _, err = run("pretrain", *given, "--per_device_train_batch_size", "4", "--output", one)
    assert status == 0, err
    launched("pretrain", [*given, "--per_device_train_batch_size", "2", "--output", two], tmp_path)
    wanted, found = moved(chain / "pretrain", one), moved(chain / "pretrain", two)
    assert len(wanted) > 15
    for name, change in wanted.items():
        assert (found[name] - change).norm() < 1e-3 * change.norm(), name


def test_an_adapter_is_not_turned(run, chain, data, tmp_path):
    status, _, err = run("sft", *flags_of("sft", chain, data, tmp_path / "sft"), "--optim", MUON)
    assert status == 2
    assert "optim: muon: turns whole matrices; an adapter's are of low rank" in err
    assert "method: full" in err
    status, _, err = run("sft", *flags_of("sft", chain, data, tmp_path / "full"), "--optim", MUON, "--method", "full")
    assert status == 0, err

"""`make plan`: what it says of a small profile whose nodes were never made, for this machine and for named ones."""

import dataclasses
import json
import math
import os

import pytest
import torch

from pipeline.chain import profile
from pipeline.commands import _forked, _plan, plan
from pipeline.commands._plan import devices, table
from pipeline.system import hardware, optimizers
from pipeline.system.errors import UserError
from pipeline.training.footprint import extrapolated, followed
from tests.conftest import flags_of
from tests.test_deep import small  # noqa: F401

KEYS = {
    "node", "stage", "trained", "frozen", "tokens", "steps", "flops", "memory", "peak_memory", "room", "fits", "disk", "seconds", "kwh",
    "dollars", "would_fit",
}  # fmt: skip


def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 7))


def step(model, rows):
    return followed(lambda: model(torch.ones(rows, 64)).sum().backward(), 7)


def test_a_step_is_told_from_the_same_on_fewer_rows():
    found = {}
    for rows in (2, 3, 50):
        model = layers()
        found[rows] = step(model, rows)
    whole = extrapolated(found[2], found[3], 48)
    assert whole.peak == found[50].peak
    assert whole.linear == found[50].linear == 50 * 2 * (64 * 256 * 2 + 256 * 7 * 3)  # no gradient of the input
    assert whole.logits == 50 * 7 * 4
    gradients = sum(one.numel() * 4 for one in model.parameters())
    assert 0 < whole.kept <= gradients
    assert whole.peak > 50 * 256 * 4 * 2  # what the activation reads and gives


def test_of_two_steps_that_ran_other_operations_the_peaks_alone_tell_how_it_goes_on():
    model = layers()
    two = step(model, 2)
    three = followed(lambda: (model(torch.ones(3, 64)).sum() * 2).backward(), 7)
    assert not two.alike(three)
    assert extrapolated(two, three, 5).peak == two.peak + 5 * (three.peak - two.peak)


def test_a_profile_is_planned_before_anything_is_made(small, tmp_path, run, monkeypatch):  # noqa: F811
    monkeypatch.setattr(_plan, "STEPS", 4)
    status, out, _ = run("plan", "--profile", str(small.folder), "--runs", str(tmp_path))
    assert status == 0
    assert [path.name for path in (tmp_path / "small").iterdir()] == [plan.NAME]
    record = json.loads((tmp_path / "small" / plan.NAME).read_text())
    assert [node["node"] for node in record["nodes"]] == list(small.nodes)
    for node in record["nodes"]:
        assert set(node) == KEYS
        assert node["fits"]
        assert node["would_fit"] == []
        assert 0 < node["seconds"] < math.inf
        assert node["trained"] > 0
        assert node["memory"]["weights"] > 0
        assert (
            node["peak_memory"] >= 0
        )  # of this process beyond what it held before, which may be more than so small a model takes
    first, adapted = record["nodes"][0], record["nodes"][1]
    assert (first["frozen"], adapted["frozen"]) == (0, first["trained"])
    assert first["memory"]["optimizer"] >= 8 * first["trained"]
    rows = 400 * 32  # the head's weights, of which each token of a packed row takes six operations
    assert first["flops"]["linear"] > 6 * rows * first["tokens"]
    assert "steps over" in out


@pytest.mark.slow
def test_a_named_machine_is_planned_for_without_timing_a_step(small, tmp_path):  # noqa: F811
    machine = devices.chosen("h100x8")
    planner = _plan.Planner(small, tmp_path, tmp_path / "scratch", machine, 0.5)
    found = list(planner.planned())
    assert [(one.name, one.why) for one in found] == [(name, "") for name in small.nodes]
    first = found[0]
    assert not any("measured" in one.found for one in found)
    total = sum(first.found["flops"].values())
    assert first.seconds == total / (8 * 989.4e12 * 0.5)
    assert _plan.cost(machine, 3600) == 8 * 3.24
    assert _plan.energy(machine, 3600) == pytest.approx(8 * 0.7)


def test_a_parent_of_which_only_the_configuration_is_there_is_planned_without_being_loaded(tmp_path):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 500}
    LlamaConfig(architectures=["LlamaForCausalLM"], **sizes).save_pretrained(tmp_path / "parent")
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    lines = f"parent: {tmp_path / 'parent'}\nchat_template: chatml.jinja\nmax_length: 32\nmax_steps: 7\n"
    (nodes / "sft.yaml").write_text(f"{lines}method: full\n")
    (nodes / "sft-lora.yaml").write_text(lines)
    full, lora = _plan.Planner(profile.load(nodes), tmp_path / "runs", tmp_path / "scratch", devices.chosen("h100")).planned()
    body = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert full.found["trained"] == 2 * 500 * 64 + body + 5 * 64
    assert full.found["steps"] == 7
    assert full.found["flops"]["linear"] == 6 * (body + 500 * 64) * 7 * 8 * 32
    assert lora.found["frozen"] == full.found["trained"]
    assert 0 < lora.found["trained"] < body
    assert lora.found["memory"]["optimizer"] == 8 * lora.found["trained"]
    assert full.fits


def test_what_does_not_fit_is_told_with_the_smallest_change_that_does(small, tmp_path):  # noqa: F811
    machine = devices.Machine("a small one", 1, 0.0, 100.0, 1e12)
    planner = _plan.Planner(small, tmp_path, tmp_path / "scratch", machine)
    first = next(planner.planned())
    changes = [change for change, _ in first.ways]
    assert changes == ["gradient_checkpointing: true", "per_device_train_batch_size: 2, gradient_accumulation_steps: 2",
                       "per_device_train_batch_size: 1, gradient_accumulation_steps: 4"]  # fmt: skip
    told = list(table.lines(first, machine))
    assert "DOES NOT FIT" in told[-5]
    assert "nothing that was tried" in told[-1]
    enough = devices.Machine("a larger one", 1, first.ways[1][1], 100.0, 1e12)
    again = next(_plan.Planner(small, tmp_path, tmp_path / "other", enough).planned())
    assert again.fits or again.ways[-1][1] <= enough.memory


def test_an_unknown_device_is_refused_with_the_nearest_names(run, tmp_path):
    status, _, err = run("plan", "--profile", "tiny", "--runs", str(tmp_path), "--on", "h10x8")
    assert status == 2
    assert "did you mean h100 or h200?" in err
    with pytest.raises(UserError, match="no device at all"):
        devices.chosen("h100x0")
    assert not (tmp_path / "tiny").exists()


def test_json_is_printed_in_place_of_sentences(run, tmp_path, monkeypatch):
    unknown = {"trained": 1, "frozen": 0, "steps": 1, "flops": {"linear": 1, "attention": 0}, "memory": {}}
    nodes = [_plan.Planned("sft", "sft", why="no parent"), _plan.Planned("dpo", "dpo", found=unknown, seconds=math.nan)]
    monkeypatch.setattr(_plan.Planner, "planned", lambda _: iter(nodes))
    flags = ["--profile", "tiny", "--runs", str(tmp_path), "--on", "h100", "--utilisation", "1", "--json"]
    status, out, _ = run("plan", *flags, "yes")
    assert status == 0
    record = json.loads(out, parse_constant=pytest.fail)  # NaN is no JSON
    assert record == json.loads((tmp_path / "tiny" / plan.NAME).read_text())
    assert record["utilisation"] == 1
    assert [record["nodes"][1][key] for key in ("seconds", "kwh", "dollars")] == [None, None, None]
    status, _, err = run("plan", *flags, "pretty")
    assert (status, "--json: expected yes or no" in err) == (2, True)


@pytest.mark.parametrize("share", ["0", "1.5", "much"])
def test_a_share_that_is_none_is_refused(run, share, tmp_path):
    status, _, err = run("plan", "--profile", "tiny", "--runs", str(tmp_path), "--utilisation", share)
    assert status == 2
    assert "--utilisation" in err


def test_every_device_has_its_source():
    for name, row in devices.known().items():
        assert {"memory", "bf16", "bandwidth", "source"} <= row.keys(), name
        assert devices.chosen(name).count == 1


def test_profiles_of_which_nothing_can_be_said_say_why(small, tmp_path):  # noqa: F811
    nodes = tmp_path / "other"
    nodes.mkdir()
    (nodes / "sft.yaml").write_text("parent: nowhere/at/all\nchat_template: chatml.jinja\n")
    found = list(_plan.Planner(profile.load(nodes), tmp_path / "runs", tmp_path / "scratch", devices.this()).planned())
    assert "nowhere" in found[0].why


def test_a_run_that_cannot_fit_is_refused_before_its_first_step(chain, data, tmp_path, run, monkeypatch):
    # The small model has 36,736 parameters: 147 kB of gradients, 294 kB of AdamW's state.
    flags = [*flags_of("sft", chain, data, tmp_path / "sft"), "--method", "full"]
    monkeypatch.setattr(hardware, "room", lambda: 100_000)
    status, _, err = run("sft", *flags)
    assert status == 2
    assert "method: lora" in err
    assert not (tmp_path / "sft" / "manifest.json").exists()
    monkeypatch.setattr(hardware, "room", lambda: 300_000)
    status, _, err = run("sft", *flags)
    assert (status, "optim: adafactor" in err) == (2, True), err
    assert run("sft", *flags, "--optim", "adafactor")[0] == 0


def test_an_optimizer_of_which_nothing_is_known_refuses_nothing():
    assert [optimizers.least_state(name) for name in ("adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "galore_adamw", "apollo_adamw", "sgd", "new_one")] == [
        8, 2, 0, 0, 0, 0, 0,
    ]  # fmt: skip


def test_planning_leaves_the_device_to_the_processes_that_train(small, tmp_path, run, monkeypatch):  # noqa: F811
    """A process that woke CUDA can't hand it on to its forks ("Cannot re-initialize CUDA in forked subprocess")."""
    parent, woken = os.getpid(), []

    def asked(name, answer):
        def call(*_, **__):
            if os.getpid() == parent and os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK") != "1":
                woken.append(name)
            return answer

        return call

    for name, answer in {
        "is_available": False,
        "mem_get_info": (1e9, 2e9),
        "current_device": 0,
        "is_bf16_supported": False,
    }.items():
        monkeypatch.setattr(torch.cuda, name, asked(name, answer))
    monkeypatch.setattr(_plan, "STEPS", 1)
    assert run("plan", "--profile", str(small.folder), "--runs", str(tmp_path))[0] == 0
    assert woken == []
    record = json.loads((tmp_path / "small" / plan.NAME).read_text())
    assert [node["seconds"] > 0 for node in record["nodes"]] == [True] * 3


def test_what_a_child_is_asked_is_answered_without_this_process():
    assert _forked.answered(lambda: [os.getpid(), 0.5])[1] == 0.5
    assert _forked.answered(os.getpid) != os.getpid()
    with pytest.raises(RuntimeError, match="without an answer"):
        _forked.answered(lambda: 1 / 0)


def test_on_an_accelerator_its_own_memory_is_watched(monkeypatch):
    held = {"most": 5e9}
    monkeypatch.setattr(hardware, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: held["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(most=2e9))
    watched = _plan.Watched()
    watched.begin()
    assert watched.more() == 5e9
    watched.peak.forget()
    assert watched.more() == 2e9


def test_four_bits_are_tried_after_an_adapter_and_count_the_frozen_layers(tmp_path):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 500}
    LlamaConfig(architectures=["LlamaForCausalLM"], **sizes).save_pretrained(tmp_path / "parent")
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    (nodes / "sft.yaml").write_text(
        f"parent: {tmp_path / 'parent'}\nchat_template: chatml.jinja\nmax_length: 32\nmax_steps: 7\nmethod: full\n"
    )
    machine = devices.Machine("a small one", 1, 0.0, 100.0, 1e12)
    (sft,) = _plan.Planner(profile.load(nodes), tmp_path / "runs", tmp_path / "scratch", machine).planned()
    changes = [change for change, _ in sft.ways]
    assert changes[:3] == ["gradient_checkpointing: true", "method: lora", "load_in_4bit: true"]
    body = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    (_, lora), (_, four) = sft.ways[1:3]
    assert lora - four == pytest.approx(_plan.FRAGMENTS * body * (2 - 0.5 - 4 / 64))


def test_nodes_of_which_nothing_is_said_are_named_beside_the_sums():
    nodes = [_plan.Planned("clean", "curate", why="curate hands on rows and trains no model")]
    assert "not in these sums: clean (curate)" in list(table.whole(nodes, devices.chosen("h100"), 0.4))


def test_steps_of_a_stage_that_trains_in_rounds_are_a_multiple_of_them(small, tmp_path, monkeypatch):  # noqa: F811
    seen = []

    def forked(node, argv, printed, *_):
        seen.append(argv)
        printed.write_text("")
        return 1

    monkeypatch.setattr(_plan, "forked", forked)
    for on, steps in (("", "18"), ("h100", "3")):
        planner = _plan.Planner(small, tmp_path, tmp_path / "scratch", devices.chosen(on))
        node = dataclasses.replace(small.nodes["sft"], settings={**small.nodes["sft"].settings, "rounds": 3})
        planner.run(node, "whole")
        assert seen[-1][seen[-1].index("--max_steps") + 1] == steps
        assert "--prompts" in seen[-1]

"""The battery of `make check DEEP=1`: every identity holds on a small profile, and one that does not is seen."""

import pytest

from pipeline.chain import profile
from pipeline.commands import _deep

SMALL = (
    "hidden_size: 32\nnum_hidden_layers: 2\nnum_attention_heads: 2\nvocab_size: 400\nmax_length: 64\nlearning_rate: 1e-2\n"
    "per_device_train_batch_size: 4\n"
)
CHAT = "max_length: 64\nper_device_train_batch_size: 4\nlearning_rate: 1e-3\n"


@pytest.fixture(scope="module")
def small(data, tmp_path_factory):
    """A profile of three nodes on files, as somebody writes it."""
    from pipeline.data import recipe

    folder = tmp_path_factory.mktemp("small")
    for kind, file in (("text", "text"), ("messages", "chats"), ("preference", "pairs")):
        (folder / f"{kind}.yaml").write_text(f"type: {kind}\nsources:\n  - files: {data / file}.jsonl\n")
        assert recipe.load(str(folder / f"{kind}.yaml"))
    nodes = folder / "small"
    nodes.mkdir()
    (nodes / "pretrain.yaml").write_text(f"recipe: {folder / 'text.yaml'}\n{SMALL}")
    (nodes / "sft.yaml").write_text(
        f"recipe: {folder / 'messages.yaml'}\nchat_template: chatml.jinja\nparent: pretrain\n{CHAT}"
    )
    (nodes / "dpo.yaml").write_text(f"recipe: {folder / 'preference.yaml'}\nparent: sft\n{CHAT}")
    return profile.load(nodes)


@pytest.mark.slow
def test_all_identities_hold_on_a_small_profile(small, tmp_path):
    battery = _deep.Battery(small, tmp_path)
    _deep.load_libraries(battery.nodes)
    found = list(battery.measured(print))
    lines = "\n".join(_deep.table(found))
    assert all(one.holds and one.allowed is not None for one in found), lines
    measured = {one.name.partition(" (")[0] for one in found}
    assert measured >= {
        "resumed = uninterrupted", "accumulated = whole", "two processes = one", "merged = adapter", "packed = unpacked",
        "left padding = right padding", "greedy answers with cache = without", "saved and loaded = itself",
        "loss of pairs before the first step = ln 2",
    }  # fmt: skip


def test_a_model_that_its_cache_changes_is_seen(chain, monkeypatch):
    from transformers import LlamaForCausalLM

    from pipeline.commands._deep import models

    generate = LlamaForCausalLM.generate

    def other(self, ids, use_cache, **how):
        found = generate(self, ids, use_cache=use_cache, **how)
        return found if use_cache else found + 1

    monkeypatch.setattr(LlamaForCausalLM, "generate", other)
    found = {
        name: (off, allowed) for name, off, allowed in models.identities(chain / "sft", ["The cat saw the old dog. " * 4] * 4)
    }
    assert found["saved and loaded = itself"] == (0.0, 0.0)
    assert found["packed = unpacked"][0] <= 1e-3
    name = "greedy answers with cache = without (tokens that differ)"
    assert found[name][0] > found[name][1]


@pytest.mark.parametrize(("step", "off", "holds"), [(0.02, 0.0, [True, True]), (0.02, 0.01, [False, False]), (1e-6, 0.0, [])])
def test_batches_are_compared_by_what_the_step_moves_and_not_by_the_size_of_the_weights(
    small, tmp_path, monkeypatch, step, off, holds
):
    """`step`: what one of the usual rate moves; `off`: by which share of it the other ways to take it are longer."""
    import torch
    from safetensors.torch import save_file

    def run(self, node, way, *flags, **_):
        rate = float(flags[flags.index("--learning_rate") + 1])
        self.place(node, way).mkdir(parents=True)
        moved = step * rate / 0.1 * (1 if way in ("step", "twice") else 1 + off)
        save_file({"norm.weight": torch.ones(4) - moved}, self.place(node, way) / "model.safetensors")
        return ""

    monkeypatch.setattr(_deep.Battery, "run", run)
    found = list(_deep.Battery(small, tmp_path).batches(small.nodes["pretrain"]))
    assert [one.holds for one in found if one.allowed is not None] == holds
    assert [one.why for one in found if one.allowed is None] == ["a step moves no weight by more than 1.0e-06"] * (
        2 - len(holds)
    )


def test_the_table_names_what_differs_and_what_was_not_measured():
    lines = _deep.table([_deep.Identity("a", "x = y", 0.5, 0.1), _deep.Identity("bcd", "z = w", why="one row a batch")])
    assert lines[1].endswith("5.0e-01   1.0e-01  DIFFERS")
    assert lines[2].endswith("not measured: one row a batch")


@pytest.mark.parametrize(("said", "status", "shown"), [("yes", 1, True), ("no", 0, False), ("maybe", 2, False)])
def test_the_command_runs_the_battery_where_it_is_told_to_and_fails_where_something_differs(
    small, run, monkeypatch, tmp_path, said, status, shown
):
    monkeypatch.setattr(_deep.Battery, "measured", lambda *_: [_deep.Identity("sft", "x = y", 0.5, 0.1)])
    found, out, err = run("check", "--profile", small.folder, "--runs", tmp_path, "--deep", said)
    assert (found, "DIFFERS" in out) == (status, shown), err
    assert ("--deep: expected yes or no, found 'maybe'" in err) == (status == 2)

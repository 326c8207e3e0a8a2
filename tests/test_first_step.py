"""What the gradient of the first rows tells before any step: none at all, or one that no step can follow."""

import re

import pytest


def trained(run, chain, data, tmp_path, *flags):
    given = ("--parent", chain / "sft", "--data", data / "pairs.jsonl", "--output", tmp_path / "out", "--max_length", 64)
    return run("dpo", *given, "--num_train_epochs", "0.2", *flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--beta", "1000", "--learning_rate", "0.01"), r"one step would change the loss of the first rows, 0\.\d+, by about \de\+0\d: the loss is so steep"),
        (("--loss_type", "[sigmoid]", "--loss_weights", "[0.0]"), "the first rows have no loss, or it gives no weight a gradient"),
    ],
)  # fmt: skip
def test_a_loss_that_no_step_can_follow_stops_before_the_first_one(run, chain, data, tmp_path, flags, said):
    status, out, err = trained(run, chain, data, tmp_path, *flags)
    assert (status, bool(re.search(said, err))) == (2, True), out + err
    assert "step 1/" not in out


def test_asking_leaves_the_run_as_it_was(run, chain, data, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from pipeline.training import first_step

    assert trained(run, chain, data, tmp_path / "a")[0] == 0
    monkeypatch.setattr(first_step, "fault", lambda _: "")
    assert trained(run, chain, data, tmp_path / "b")[0] == 0
    one, other = (load_file(tmp_path / name / "out" / "model.safetensors") for name in "ab")
    assert all(bool((one[name] == other[name]).all()) for name in one)

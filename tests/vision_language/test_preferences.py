"""DPO and KTO of a model that sees: where they begin, whose reference is kept, and what a kill leaves."""

import json
import math

import pytest
import torch

from pipeline.chain import manifest
from tests.forked import launched
from tests.vision_language import flags_of_dpo, flags_of_kto, killed_ends_as, lines, logged, part, same, weights


def test_the_first_loss_of_pairs_is_that_of_a_coin_and_the_kept_reference_is_the_parent(run, made, picture_data, tmp_path):
    assert logged(made / "dpo")["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "reference" in manifest.read(made / "dpo")
    more = ["--num_train_epochs", "1", "--precompute_ref_log_probs", "false", "--output", tmp_path / "asked"]
    assert run("dpo", *flags_of_dpo(made, picture_data, *more))[0] == 0
    kept, asked = weights(made / "dpo"), weights(tmp_path / "asked")
    assert all(torch.allclose(kept[key], asked[key], atol=2e-4) for key in kept)


@pytest.mark.slow
def test_the_kept_reference_is_of_its_own_pictures(run, made, picture_data, tmp_path):
    """The same words about other pictures: what was kept of the first is not read again."""
    rows = [json.loads(line) for line in (picture_data / "pairs.jsonl").read_text().splitlines()]
    changed = [row | {"images": row["images"][::-1]} for row in rows]
    first, again = ((manifest.read(made / "dpo") or {})["reference"], [])
    more = ["--num_train_epochs", "1", "--data", lines(tmp_path / "other.jsonl", changed), "--output", made / "dpo-other"]
    assert run("dpo", *flags_of_dpo(made, picture_data, *more))[0] == 0
    again = (manifest.read(made / "dpo-other") or {})["reference"]
    assert again["digest"] != first["digest"]
    assert not again["reused"]


def test_rated_answers_begin_at_even_and_are_kept_and_killed_with_their_pictures(
    run, made, picture_data, tmp_path, monkeypatch
):
    """Before a step the parent says of an answer what the model says, whether kept or asked; a kill changes nothing."""
    more = ["--num_train_epochs", "1", "--save_steps", "1"]
    status, _, err = run("kto", *flags_of_kto(made, picture_data, *more, "--output", tmp_path / "whole"))
    assert status == 0, err
    assert manifest.read(tmp_path / "whole")["family"] == "vision_language"
    asks = [*more, "--precompute_ref_log_probs", "false", "--output", tmp_path / "asked"]
    assert run("kto", *flags_of_kto(made, picture_data, *asks))[0] == 0
    for folder in ("whole", "asked"):
        first = logged(tmp_path / folder)
        apart = [first["kl"], *(value for key, value in first.items() if key.startswith("rewards/"))]
        assert len(apart) > 1
        assert apart == pytest.approx([0] * len(apart), abs=1e-4)
    kept, asked = weights(tmp_path / "whole"), weights(tmp_path / "asked")
    assert all(torch.allclose(kept[key], asked[key], atol=2e-4) for key in kept)
    assert same(part(made / "sft", "vision_tower"), part(tmp_path / "whole", "vision_tower"))
    killed_ends_as(tmp_path / "whole", run, monkeypatch, "kto", flags_of_kto(made, picture_data, *more), 5)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "steps"), [("kto", 1), ("apo_zero_unpaired", 3)])
def test_rated_answers_about_pictures_move_two_processes_as_one(run, made, picture_data, tmp_path, loss, steps):
    """At the parent the KL is 0, whichever rows it is estimated from; a loss without it is a mean over rows in each step."""
    more = ["--method", "full", "--loss_type", loss, "--max_steps", steps, "--optim", "sgd", "--learning_rate", "0.1"]
    more += ["--lr_scheduler_type", "constant", "--max_grad_norm", "0"]
    one, two = (flags_of_kto(made, picture_data, *more, "--output", tmp_path / name) for name in ("one", "two"))
    status, _, err = run("kto", *one)
    assert status == 0, err
    assert launched("kto", [*two, "--per_device_train_batch_size", "2"], tmp_path).count("done in") == 1
    wanted, found, start = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(made / "sft")
    assert max(float((found[key] - wanted[key]).abs().max()) for key in wanted) < 1e-5
    assert max(float((wanted[key] - start[key]).abs().max()) for key in wanted) > 1e-3

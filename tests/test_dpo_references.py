"""The kept reference: when it is computed and when it is read again, what it equals, and what harm it survives."""

import os
import types

import numpy as np
import pytest

from pipeline.chain import manifest
from pipeline.training import preference, references
from tests.conftest import SMALL, Fails, last, mostly_slow
from tests.forked import launched
from tests.test_launch import same_step

WHOLE = [*SMALL["dpo"], "--per_device_train_batch_size", "8", "--max_steps", "12"]  # every pair is read


@pytest.fixture
def passes(monkeypatch):
    """The rows of which the parent was asked, one entry a batch."""
    seen = []
    scores = preference.PreferenceTrainer._parent_scores

    def counted(self, rows):
        seen.append(len(rows))
        return scores(self, rows)

    monkeypatch.setattr(preference.PreferenceTrainer, "_parent_scores", counted)
    return seen


@pytest.fixture
def dpo(run, chain, data, tmp_path):
    """Run the stage, every pair read; later flags replace earlier ones."""

    def call(*flags):
        given = ["--parent", chain / "sft", "--output", tmp_path / "dpo", "--data", data / "pairs.jsonl", *WHOLE, *flags]
        status, out, err = run("dpo", *last(given))
        assert status == 0, err
        return out

    return call


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def files(folder):
    return sorted((folder / references.FOLDER).iterdir())


def test_it_is_computed_once_and_never_again_for_a_rate_a_beta_a_loss_or_more_epochs(dpo, passes, tmp_path):
    out = dpo()
    assert "reference: one pass of the parent over 81 rows" in out
    assert sum(passes) == 81
    assert manifest.read(tmp_path / "dpo")["reference"]["reused"] is False
    before = len(passes)
    others = ["--learning_rate", "1e-3", "--loss_type", "[ipo, sft]", "--ld_alpha", "0.5", "--num_train_epochs", "2"]
    out = dpo("--beta", "0.5", *others, "--max_steps", "-1", "--output", tmp_path / "other")
    assert "reference: kept (reused) in" in out
    assert len(passes) == before
    assert manifest.read(tmp_path / "other")["reference"]["reused"] is True
    dpo("--output", tmp_path / "again")
    assert len(passes) == before
    assert weights(tmp_path / "again") == weights(tmp_path / "dpo")  # whether it was there or not


@pytest.mark.slow
def test_it_is_computed_again_for_another_parent_template_or_pairs(dpo, passes, chain, data, tmp_path):
    dpo()
    template = tmp_path / "other.jinja"
    template.write_text((chain / "sft" / "chat_template.jinja").read_text().replace("{{- '\\n' -}}", "{{- '\\n\\n' -}}"))
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join((data / "pairs.jsonl").read_text().splitlines(keepends=True)[:60]))
    changes = [
        ["--parent", chain / "dpo"], ["--chat_template", template], ["--init", "random"], ["--data", fewer],
    ]  # fmt: skip
    for number, flags in enumerate(changes):
        before = len(passes)
        dpo(*flags, "--output", tmp_path / str(number))
        assert len(passes) > before, flags
        assert len(files(tmp_path)) == 2 + number, flags


@pytest.mark.parametrize("harm", mostly_slow(["a number", "the end", "everything", "the sum"], "a number", "everything"))
def test_a_damaged_file_is_said_and_computed_anew(dpo, passes, tmp_path, harm):
    dpo()
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 64
    other = whole.replace(b'"sha256":"', b'"sha256":"0', 1)
    path.write_bytes({"a number": bytes(flipped), "the end": whole[:-9], "everything": b"", "the sum": other}[harm])
    before = len(passes)
    out = dpo("--output", tmp_path / "again")
    assert "is damaged and is computed anew" in out
    assert len(passes) > before
    assert path.read_bytes() == whole
    assert weights(tmp_path / "again") == weights(tmp_path / "dpo")


@pytest.mark.parametrize("moment", mostly_slow(["in the pass", "while it is written"], "while it is written"))
def test_a_pass_that_breaks_off_leaves_nothing_that_would_be_read(dpo, run, chain, data, tmp_path, monkeypatch, moment):
    dpo("--output", tmp_path / "straight" / "dpo")

    def torn(file):
        os.ftruncate(file, 99)
        raise OSError("pulled the plug")

    flags = ["--parent", chain / "sft", "--output", tmp_path / "dpo", "--data", data / "pairs.jsonl", *WHOLE]
    with monkeypatch.context() as patch:
        if moment == "in the pass":
            patch.setattr(preference.PreferenceTrainer, "_parent_scores", Fails(preference.PreferenceTrainer._parent_scores, 3))
        else:
            patch.setattr(references, "os", types.SimpleNamespace(getpid=os.getpid, fsync=torn))
        assert run("dpo", *last(flags))[::2] == (1, "dpo: pulled the plug\n")
    assert "reference: one pass" in dpo()
    assert weights(tmp_path / "dpo") == weights(tmp_path / "straight" / "dpo")


def test_a_run_that_goes_on_reads_it_and_ends_in_the_same_bytes(dpo, run, chain, data, passes, tmp_path, monkeypatch):
    dpo("--save_steps", "5")
    before = len(passes)
    with monkeypatch.context() as patch:
        patch.setattr(preference.PreferenceTrainer, "training_step", Fails(preference.PreferenceTrainer.training_step, 8))
        flags = ["--parent", chain / "sft", "--output", tmp_path / "cut", "--data", data / "pairs.jsonl", *WHOLE]
        assert run("dpo", *last([*flags, "--save_steps", "5"]))[0] == 1
    out = dpo("--save_steps", "5", "--output", tmp_path / "cut")
    assert "goes on from checkpoint-5" in out
    assert len(passes) == before
    assert weights(tmp_path / "cut") == weights(tmp_path / "dpo")


def test_a_run_that_reads_few_of_the_pairs_asks_the_parent_in_each_step(dpo, passes, tmp_path):
    assert "reference: asked in each step" in dpo("--max_steps", "3")
    assert not passes
    assert not (tmp_path / references.FOLDER).exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_is_what_the_parent_says_without_its_adapter(dpo, chain, tmp_path, method):
    """Against transformers alone, each answer in a batch of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    kept = {}
    monkeypatch = pytest.MonkeyPatch()
    found = references.kept

    def spied(run, dataset, columns, *more):
        kept["values"], kept["rows"] = found(run, dataset, columns, *more), list(dataset)
        return kept["values"]

    monkeypatch.setattr(references, "kept", spied)
    dpo("--method", method)
    monkeypatch.undo()
    model = AutoModelForCausalLM.from_pretrained(chain / "sft").eval()
    worst = 0.0
    for number, row in enumerate(kept["rows"]):
        for side in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([row["prompt_ids"] + row[side]])
            with torch.no_grad():
                nats = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            expected = nats[len(row["prompt_ids"]) - 1 :].numpy()
            worst = max(worst, float(np.abs(kept["values"][side][number] - expected).max()))
    assert worst <= 1e-5


def test_clean_removes_it(dpo, run, tmp_path):
    dpo("--output", tmp_path / "runs" / "mine" / "dpo")
    assert files(tmp_path / "runs" / "mine")
    status, out, _ = run("clean", "--runs", tmp_path / "runs")
    assert status == 0
    assert "1 node removed" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_processes_keep_what_one_keeps(dpo, chain, data, tmp_path):
    """The same file; and two with four pairs each move the weights as one with eight does."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join((data / "pairs.jsonl").read_text().splitlines(keepends=True)[:-1]))
    more = ["--optim", "sgd", "--learning_rate", "0.1", "--data", pairs]
    dpo(*more, "--output", tmp_path / "one" / "dpo")
    assert manifest.read(tmp_path / "one" / "dpo")["recipe"]["kept"] % 8 == 0  # else accelerate reads some twice on two
    flags = ["--parent", chain / "sft", "--output", tmp_path / "two" / "dpo", *WHOLE, *more]
    assert launched("dpo", [*flags, "--per_device_train_batch_size", "4"], tmp_path).count("reference: kept in") == 1
    (two,), (one,) = files(tmp_path / "two"), files(tmp_path / "one")
    assert (two.name, two.read_bytes()) == (one.name, one.read_bytes())
    same_step(tmp_path / "two" / "dpo", tmp_path / "one" / "dpo")

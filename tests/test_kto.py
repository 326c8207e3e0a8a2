"""Alignment by thumbs: what is refused, what the batches hold, exactness, resuming, and figures."""

import json
import math
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.chain import finished, manifest, resume
from pipeline.evaluation.metrics.thumbs import auc
from pipeline.report import batches
from pipeline.system import hashes
from pipeline.system.errors import UserError
from pipeline.training import loop
from pipeline.training.unpaired import ThumbsTrainer
from stages.kto import mismatched, shorten
from tests.conftest import last
from tests.forked import Forked
from tests.test_dpo import gradient, moved, stock_trainer
from tests.test_resume import wait_for

SMALL = ["--max_length", "64", "--max_steps", "4", "--per_device_train_batch_size", "4", "--learning_rate", "1e-3"]


@pytest.fixture(scope="module")
def thumbs(tmp_path_factory):
    """Answers of which one in three is liked, in the order of a file: those that stop first."""
    animals = ["cat", "dog", "hen", "owl", "fox", "bee", "ant", "cow", "elk", "eel"]
    pairs = [(a, b) for a in animals for b in animals if a != b]
    up = [{"prompt": f"Who saw the {b}?", "completion": f"The {a} did.", "label": True} for a, b in pairs[::3]]
    down = [
        {"prompt": f"Who saw the {b}?", "completion": f"The {a} did. And so on.", "label": False}
        for number, (a, b) in enumerate(pairs)
        if number % 3
    ]
    return write(tmp_path_factory.mktemp("thumbs") / "thumbs.jsonl", up + down)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def kto(run, chain, thumbs, tmp_path):
    """Run the stage on the small chain; later flags replace earlier ones."""

    def call(*flags, data=thumbs):
        given = ["--parent", chain / "sft", "--output", tmp_path / "kto", "--data", data, *SMALL, *flags]
        return run("kto", *last(given))

    return call


def examples(count):
    return [{"prompt_ids": [number], "completion_ids": [10 + number], "label": number % 2} for number in range(count)]


def test_the_kl_is_estimated_from_the_answers_of_the_same_batch():
    found = [row["KL_completion_ids"][0] - 10 for row in mismatched(examples(9), 4)]
    assert found == [3, 0, 1, 2, 7, 4, 5, 6, 7]  # the last batch has one row, and the answer of the one before it
    assert all(other != number for number, other in enumerate(found))


def test_both_kinds_of_thumbs_weigh_the_same_in_rows_of_an_order_by_seed(kto, tmp_path):
    status, out, err = kto()
    assert status == 0, err
    record = manifest.read(tmp_path / "kto")
    up, down = record["thumbs"]["up"], record["thumbs"]["down"]
    assert 20 < up < down
    assert record["thumbs"]["weights"] == {"up": down / up, "down": 1.0}
    assert f"{up} thumbs up with weight {down / up:.3g}, {down} down with weight 1, so that both kinds count alike" in out
    first = json.loads((tmp_path / "kto" / "log.jsonl").read_text().splitlines()[0])
    assert first["change/chosen"] == pytest.approx(0, abs=1e-5)  # nothing is learned yet: the reference is the parent
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert kto("--seed", "7", "--undesirable_weight", "3", "--output", tmp_path / "other")[1].count("as the profile says") == 1
    assert manifest.read(tmp_path / "other")["thumbs"]["weights"] == {"up": 1.0, "down": 3.0}


def test_the_first_batch_is_shown_with_the_end_of_every_answer(kto, tmp_path):
    assert kto()[0] == 0
    found = batches.first(finished.read(tmp_path / "kto"))
    assert found.agrees
    assert len(found.lines) == 4
    spoken = ["".join(token.text for token in line.tokens if token.counts) for line in found.lines]
    assert all(text.startswith("The ") and text.endswith("<|im_end|>") for text in spoken)


@pytest.mark.parametrize("label", [True, False])
def test_thumbs_of_one_kind_are_refused_before_the_first_step(kto, thumbs, tmp_path, label):
    rows = [row for row in map(json.loads, thumbs.read_text().splitlines()) if row["label"] == label]
    status, _, err = kto(data=write(tmp_path / "one.jsonl", rows))
    assert status == 2
    assert f"thumbs are {'up' if label else 'down'} (none was dropped); this stage needs both kinds" in err
    assert "Traceback" not in err


def test_thumbs_of_one_kind_after_long_rows_were_dropped(kto, thumbs, tmp_path):
    rows = [json.loads(line) for line in thumbs.read_text().splitlines()]
    for row in rows:
        row["completion"] += " And so on." * (0 if row["label"] else 40)
    status, _, err = kto(data=write(tmp_path / "long.jsonl", rows))
    assert status == 2
    assert "thumbs are up (" in err
    assert "longer than max_length 64); this stage needs both kinds" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--per_device_train_batch_size", "1"], "per_device_train_batch_size: 1 has no other answer"),
        (["--train_sampling_strategy", "group_by_length"], "train_sampling_strategy: group_by_length would tear apart"),
        (["--loss_type", "bco"], "loss_type: expected kto or apo_zero_unpaired, found 'bco'"),
        (["--lora_dropout", "0.1"], "lora_dropout: has no effect here"),
        (["--sync_ref_model", "true", "--precompute_ref_log_probs", "true"], "precompute_ref_log_probs: sync_ref_model moves"),
        (["--disable_dropout", "false"], "disable_dropout: false would draw the reference at random"),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(kto, flags, said):
    status, _, err = kto(*flags)
    assert status == 2, err
    assert said in err
    assert "Traceback" not in err


def test_long_rows_are_counted(kto, thumbs, tmp_path):
    rows = [json.loads(line) for line in thumbs.read_text().splitlines()]
    for row in rows[:10]:
        row["completion"] += " And so on." * 40
    assert kto(data=write(tmp_path / "long.jsonl", rows))[0] == 0
    record = manifest.read(tmp_path / "kto")
    assert 5 < record["recipe"]["dropped"]["longer than max_length 64"] <= 10  # the others are held out
    assert record["recipe"]["kept"] == record["thumbs"]["up"] + record["thumbs"]["down"]


def test_batches_of_other_sizes_count_by_their_rows(kto, chain, tmp_path):
    """Without the KL, which is estimated by batch, 4 batches of 2 give the step of one batch of 8."""
    before = load_file(chain / "sft" / "model.safetensors")
    flags = [
        "--loss_type",
        "apo_zero_unpaired",
        "--optim",
        "sgd",
        "--learning_rate",
        "0.5",
        "--max_grad_norm",
        "0",
        "--max_steps",
        "1",
    ]
    for size, steps in ((8, 1), (1, 8)):
        more = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps, "--output", tmp_path / str(size)]
        status, _, err = kto(*flags, *more)
        assert status == 0, err
    one, other = (load_file(tmp_path / size / "model.safetensors") for size in ("8", "1"))
    moved = max((one[name] - before[name]).abs().max().item() for name in before)
    assert moved > 1e-6
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 2e-3 * moved


@pytest.fixture
def at_first_step(kto, monkeypatch):
    """Run the stage up to its first step, look at the trainer there, and return what the stage said."""

    def call(look, *flags):
        def first_step(run, trainer, rows):
            look(run, trainer, next(iter(trainer.get_train_dataloader())))
            raise UserError("seen enough")

        monkeypatch.setattr(loop, "fit", first_step)
        status, out, err = kto("--beta", "0.7", "--per_device_train_batch_size", "8", *flags)
        assert (status, "seen enough" in err) == (2, True), err
        return out

    return call


@pytest.mark.parametrize("keeps", ["true", "false"])
@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_loss_and_gradient_are_trls_at_a_margin(at_first_step, chain, method, loss, keeps):
    """Answers scored alone and a kept reference, that of the KL included, against trl's trainer as it comes."""
    from trl import KTOTrainer

    seen = []

    def look(run, trainer, batch):
        stock = stock_trainer(KTOTrainer, run, trainer, chain / "sft")
        assert {"ref_logps", "ref_KL_logps"} & batch.keys() == ({"ref_logps"} if keeps == "true" else set()) | (
            {"ref_KL_logps"} if keeps == "true" and loss == "kto" else set()
        )
        given = {name: column for name, column in batch.items() if not name.startswith("ref_")}
        if kept := batch.get("ref_KL_logps") is not None:
            assert torch.allclose(batch["ref_KL_logps"], stock._compute_kl_logps(stock.model, given), atol=1e-4)
        moved(trainer.model)
        moved(stock.model)
        if loss == "kto":
            ours, theirs = (one._compute_kl_logps(one.model, given) for one in (trainer, stock))
            assert torch.allclose(ours, theirs, atol=1e-4)
        (value, ours), (expected, theirs) = gradient(trainer, batch), gradient(stock, given)
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm())
        assert trainer._metrics["train"]["kl"] == pytest.approx(stock._metrics["train"]["kl"], rel=1e-3, abs=1e-4)
        assert trainer._metrics["train"]["entropy"] == pytest.approx(stock._metrics["train"]["entropy"], rel=1e-4)
        seen.append(kept)

    out = at_first_step(look, "--method", method, "--loss_type", loss, "--precompute_ref_log_probs", keeps)
    assert ("reference: kept in" in out) is (keeps == "true")
    assert seen == [keeps == "true" and loss == "kto"]


@pytest.mark.slow
def test_the_reference_is_computed_once_and_again_where_other_answers_are_put_together(kto, tmp_path, monkeypatch):
    asked = []
    scores = ThumbsTrainer._parent_scores
    monkeypatch.setattr(ThumbsTrainer, "_parent_scores", lambda self, rows: asked.append(len(rows)) or scores(self, rows))
    whole = ["--max_steps", "-1", "--num_train_epochs", "1"]
    assert "reference: kept in" in kto(*whole)[1]
    assert sum(asked) == manifest.read(tmp_path / "kto")["recipe"]["kept"]
    before = len(asked)
    out = kto(*whole, "--beta", "0.5", "--learning_rate", "1e-2", "--num_train_epochs", "2", "--output", tmp_path / "b")[1]
    assert "reference: kept (reused) in" in out
    kto(*whole, "--output", tmp_path / "again")
    assert len(asked) == before
    read = [hashes.read(tmp_path / name / "model.safetensors") for name in ("kto", "again")]
    assert read[0] == read[1]
    kto(*whole, "--per_device_train_batch_size", "8", "--output", tmp_path / "c")
    assert len(asked) > before
    before = len(asked)
    assert "reference: asked in each step" in kto("--output", tmp_path / "short")[1]
    assert len(asked) == before


def test_an_answer_behind_another_prompt_is_cut_for_the_kl_alone():
    rows = [{"prompt_ids": [1] * 5, "KL_completion_ids": [2] * 4}, {"prompt_ids": [1] * 7, "KL_completion_ids": [2] * 4}]
    assert [shorten(row, 10) for row in rows] == [False, True]
    assert [len(row["KL_completion_ids"]) for row in rows] == [4, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_stage_goes_on_to_the_same_weights(kto, chain, thumbs, tmp_path, signum, status):
    long = ["--max_steps", "120", "--save_steps", "20", "--logging_steps", "7", "--gradient_accumulation_steps", "2"]
    assert kto(*long, "--output", tmp_path / "whole")[0] == 0
    flags = ["--parent", chain / "sft", "--output", tmp_path / "kto", "--data", thumbs, *SMALL, *long]
    with Forked("kto", flags, tmp_path) as process:
        wait_for(tmp_path / "kto" / "log.jsonl", process, '"step": 28')
        process.send_signal(signum)
        _, err = process.communicate()
    assert process.returncode == status, err
    assert resume.latest(tmp_path / "kto")
    code, out, err = kto(*long)
    assert code == 0, err
    assert "goes on from checkpoint-" in out
    assert hashes.read(tmp_path / "kto" / "model.safetensors") == hashes.read(tmp_path / "whole" / "model.safetensors")
    assert manifest.read(tmp_path / "kto")["outputs"] == manifest.read(tmp_path / "whole")["outputs"]


def test_auc_by_hand_and_its_interval():
    scores, liked = np.array([3.0, 1.0, 2.0, 0.0, 1.0]), np.array([True, True, False, False, False])
    figure = auc(scores, liked)  # of six couples: three, then one below, one above, one tie
    assert figure.estimate().value == pytest.approx(4.5 / 6)
    assert auc(np.zeros(5), liked).estimate().value == 0.5
    rng = np.random.default_rng(0)
    liked = rng.random(400) < 0.3
    scores = rng.normal(size=400) + liked
    found = auc(scores, liked).estimate(resamples=2000)
    drawn = []
    for _ in range(300):
        at = rng.integers(0, 400, 400)
        drawn.append(auc(scores[at], liked[at]).estimate(resamples=1).value)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=0.015), pytest.approx(high, abs=0.015))
    assert found.value == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.05)


def test_thumbs_are_evaluated_against_the_parent(run, copy, thumbs, tmp_path):
    recipe = tmp_path / "thumbs.yaml"
    recipe.write_text(f"type: feedback\nheld_out: 0.4\nsources:\n  - files: {thumbs}\n")
    flags = ["--parent", copy / "sft", "--output", copy / "kto", "--recipe", recipe, *SMALL, "--max_steps", "40"]
    assert run("kto", *last(flags))[0] == 0
    status, _, err = run("evaluate", "--runs", copy, "--resamples", "100", "--max_new_tokens", "4", "--samples", "1")
    assert status == 0, err
    found = json.loads((copy / "evaluate.json").read_text())["nodes"]["kto"]
    assert found["skipped"] == {}
    assert {"auc", "loss", "bits_per_byte"} <= found["metrics"].keys()
    compared = {(item["metric"], item["against"]): item for item in found["comparisons"]}
    assert compared["auc", "sft"]["value"] > 0  # the parent stands at 50%
    assert found["primary"]["metric"] == "auc"  # there is no judge

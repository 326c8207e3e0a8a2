"""Nothing is lost: torn and damaged checkpoints, stops by signal, inputs that change meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipeline.chain import manifest, resume
from pipeline.system import hashes
from pipeline.training import first_step, outcome
from pipeline.training.trainer import StageTrainer
from tests import checkout
from tests.conftest import CHAIN, Fails, command, flags_of
from tests.forked import Forked


def checkpoint(folder, step, sealed=True):
    found = folder / f"checkpoint-{step}"
    found.mkdir(parents=True)
    (found / "optimizer.pt").write_bytes(bytes(range(200)))
    (found / "trainer_state.json").write_text("{}")
    if sealed:
        resume.seal(found)
    return found


def truncate(found):
    os.truncate(found / "optimizer.pt", 100)


def flip(found):
    before = bytearray((found / "optimizer.pt").read_bytes())
    before[7] ^= 1
    (found / "optimizer.pt").write_bytes(before)


def lose(found):
    (found / "optimizer.pt").unlink()


def unseal(found):
    (found / resume.SEAL).unlink()


def flip_seal(found):
    before = bytearray((found / resume.SEAL).read_bytes())
    before[9] ^= 128
    (found / resume.SEAL).write_bytes(before)


def misspell_seal(found):
    text = (found / resume.SEAL).read_text()
    (found / resume.SEAL).write_text(text.replace("size", "sizd"))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (truncate, "is damaged: optimizer.pt is not what was saved"),
        (flip, "is damaged: optimizer.pt is not what was saved"),
        (lose, "is damaged: optimizer.pt is missing"),
        (unseal, "was not saved to its end"),
        (flip_seal, "is damaged: seal.json can't be read"),
        (misspell_seal, "is damaged: seal.json can't be read"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path, harm, said):
    good, bad = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    harm(bad)
    told = []
    resume.sweep(tmp_path, told.append)
    assert told == [f"checkpoint-10 {said}; it is skipped"]
    assert resume.latest(tmp_path) == good
    resume.clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_pruning_never_leaves_fewer_than_one_sealed(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 4, sealed=False)
    resume.prune(tmp_path, None)
    assert len(list(tmp_path.iterdir())) == 4
    resume.prune(tmp_path, 0)  # the library's word for all of them
    assert len(list(tmp_path.iterdir())) == 4
    resume.prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]


def test_old_checkpoints_go_only_after_the_new_one_is_sealed(run, chain, data, tmp_path, monkeypatch):
    seen = []
    prune = resume.prune

    def watched(folder, keep, best=None):
        seen.append([(path.name, resume.fault(path)) for path in sorted(folder.glob("checkpoint-*"))])
        prune(folder, keep)

    monkeypatch.setattr(resume, "prune", watched)
    flags = [*flags_of("sft", chain, data, tmp_path / "sft"), "--save_steps", "1", "--save_total_limit", "1"]
    assert run("sft", *flags)[0] == 0
    names = [[f"checkpoint-{step}" for step in (n - 1, n) if step] for n in (1, 2, 3, 4)]
    assert seen == [[(name, "") for name in group] for group in names]


def wait_for(path, process, text=""):
    until = time.time() + 120
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, "the stage ended before it could be stopped"
        assert time.time() < until
        time.sleep(0.002)


LONG = ["--max_steps", "80", "--logging_steps", "7", "--save_steps", "20", "--gradient_accumulation_steps", "2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, chain, data):
    """SFT of 80 steps, run to its end at once."""
    out = tmp_path_factory.mktemp("whole") / "sft"
    with Forked("sft", [*flags_of("sft", chain, data, out), *LONG], out.parent) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    return out


def figures(folder):
    """The log without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: (line["tokens"], line["loss"], line["grad_norm"], line["learning_rate"]) for line in lines}, len(
        lines
    )


@pytest.mark.parametrize(
    ("signum", "status"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
    ],
)
def test_a_stopped_stage_goes_on_to_the_same_weights(whole, chain, data, tmp_path, run, signum, status):
    flags = [*flags_of("sft", chain, data, tmp_path / "sft"), *LONG]
    with Forked("sft", flags, tmp_path) as process:
        wait_for(tmp_path / "sft" / "log.jsonl", process, '"step": 21')
        asked = time.time()
        process.send_signal(signum)
        _, err = process.communicate()
        took = time.time() - asked
    assert process.returncode == status, err
    found = resume.latest(tmp_path / "sft")
    step = int(found.name.split("-")[1])
    if status > 0:
        assert 21 <= step < 80  # asked for by the signal, and not the one of step 20
        assert f"sft: stopped; checkpoint-{step} is saved and the same command goes on from there" in err
        assert took < 30  # a step takes milliseconds; the machine may be busy
    assert not (tmp_path / "sft" / manifest.NAME).exists()
    status, out, err = run("sft", *flags)
    assert status == 0, err
    assert f"goes on from checkpoint-{step}" in out
    assert hashes.read(tmp_path / "sft" / "model.safetensors") == hashes.read(whole / "model.safetensors")
    assert manifest.read(tmp_path / "sft")["outputs"] == manifest.read(whole)["outputs"]  # made by another process
    expected, _ = figures(whole)
    logged, lines = figures(tmp_path / "sft")
    assert lines == len(logged)  # no repeats
    if signum == signal.SIGKILL:
        assert logged == expected
    else:  # the stop left one line more, and the next line averages over fewer steps
        assert logged.keys() == expected.keys() | {step}
        assert all(logged[at] == expected[at] for at in expected if at <= 21 or at > step + 7)
    metrics = [manifest.read(folder)["metrics"]["mean_loss"] for folder in (whole, tmp_path / "sft")]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert manifest.read(tmp_path / "sft")["tokens"] == manifest.read(whole)["tokens"]


def test_a_signal_before_training_ends_the_stage_at_once(chain, data, tmp_path):
    with subprocess.Popen(
        command("sft", flags_of("sft", chain, data, tmp_path / "sft")), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(tmp_path / "sft" / manifest.CLAIM, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "sft: stopped; the same command goes on" in err
    assert "Traceback" not in err


def test_resuming_reads_only_the_batches_that_are_left(run, chain, data, tmp_path, monkeypatch):
    from pipeline.training import trainer

    flags = [*flags_of("sft", chain, data, tmp_path / "sft"), "--save_steps", "1"]
    collated = []
    call = trainer.Traced.__call__

    def counting(self, rows):
        collated.append(len(rows))
        if len(collated) == 4:
            raise OSError("pulled the plug")
        return call(self, rows)

    monkeypatch.setattr(trainer.Traced, "__call__", counting)
    monkeypatch.setattr(outcome, "losses", lambda trainer: [])  # whose batches are none of training's
    monkeypatch.setattr(first_step, "fault", lambda trainer: "")  # likewise
    assert run("sft", *flags)[0] == 1
    assert resume.latest(tmp_path / "sft")
    done = int(resume.latest(tmp_path / "sft").name.split("-")[1])
    collated[:] = [0] * 4
    assert run("sft", *flags)[0] == 0
    assert len(collated) - 4 <= 4 - done + 1  # the loader looks one batch ahead


@pytest.mark.parametrize("name", CHAIN)
def test_a_stage_that_was_killed_after_its_last_step_takes_no_other(run, chain, data, tmp_path, monkeypatch, name):
    flags = [*flags_of(name, chain, data, tmp_path / name), "--lr_scheduler_type", "constant"]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.chain.directory.close", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
        assert run(name, *flags)[0] == 1
    log = (tmp_path / name / "log.jsonl").read_text()
    spent = json.loads((resume.latest(tmp_path / name) / "seconds.json").read_text())["seconds"]
    status, out, _ = run(name, *flags)
    assert status == 0
    record = manifest.read(tmp_path / name)
    assert 0 < spent <= record["training_seconds"] < record["seconds"] + 0.1  # which is rounded
    assert f"goes on from checkpoint-{6 if name == 'pretrain' else 4}" in out
    assert (tmp_path / name / "log.jsonl").read_text() == log
    assert run(name, *flags_of(name, chain, data, tmp_path / "whole"), "--lr_scheduler_type", "constant")[0] == 0
    assert manifest.read(tmp_path / name)["outputs"] == manifest.read(tmp_path / "whole")["outputs"]
    assert manifest.read(tmp_path / name)["tokens"] == manifest.read(tmp_path / "whole")["tokens"]


def test_what_a_killed_process_half_wrote_does_not_stay(run, copy, data):
    record = manifest.read(copy / "sft")
    (copy / "sft" / manifest.NAME).unlink()
    manifest.claim(copy / "sft", record | {"processes": 1})
    (copy / "sft" / "model.safetensors").write_bytes(b"half")
    (copy / "sft" / ".result").mkdir()
    (copy / "sft" / ".result" / "model-00001-of-00002.safetensors").write_bytes(b"of another save")
    (copy / "sft" / "notes.txt").write_text("mine")  # what is not ours stays, and is no output
    (copy / "sft" / "runs").mkdir()
    assert run("sft", *flags_of("sft", copy, data))[0] == 0
    assert manifest.read(copy / "sft")["outputs"] == record["outputs"]
    assert manifest.read(copy / "sft")["files"].keys() == record["files"].keys()
    assert (copy / "sft" / "notes.txt").read_text() == "mine"
    assert (copy / "sft" / "runs").is_dir()


def test_what_was_left_to_tidy_up_is_tidied_up(run, copy, data):
    record = manifest.read(copy / "sft")
    manifest.claim(copy / "sft", record | {"processes": 1})
    checkpoint(copy / "sft", 4)
    status, out, _ = run("sft", *flags_of("sft", copy, data))
    assert status == 0
    assert "up to date" in out
    assert manifest.read(copy / "sft") == record
    assert not (copy / "sft" / manifest.CLAIM).exists()
    assert not list((copy / "sft").glob("checkpoint-*"))


def test_a_half_finished_stage_with_other_inputs_is_moved_aside(run, chain, data, tmp_path, monkeypatch):
    """A whole checkpoint of another configuration is never gone on from."""
    flags = flags_of("sft", chain, data, tmp_path / "sft")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.chain.directory.close", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
        assert run("sft", *flags, "--learning_rate", "0.5")[0] == 1
    half = {path.name for path in (tmp_path / "sft").iterdir()}
    assert "checkpoint-4" in half
    status, out, _ = run("sft", *flags)
    assert status == 0
    assert "learning_rate: 0.0002, was 0.5; what was there is kept in" in out
    assert "goes on from" not in out
    (aside,) = (tmp_path / ".aside").iterdir()
    assert {path.name for path in aside.iterdir()} >= {"checkpoint-4", "log.jsonl"}
    assert manifest.read(tmp_path / "sft")["config"]["learning_rate"] == 2e-4
    assert run("sft", *flags_of("sft", chain, data, tmp_path / "fresh"))[0] == 0
    assert manifest.read(tmp_path / "sft")["outputs"] == manifest.read(tmp_path / "fresh")["outputs"]


def test_the_last_checkpoint_stays_until_the_record_is_written(run, chain, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "seal", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
        assert run("sft", *flags_of("sft", chain, data, tmp_path / "sft"))[0] == 1
    assert resume.fault(tmp_path / "sft" / "checkpoint-4") == ""


def test_a_parent_that_changes_while_it_is_read_is_refused(run, copy, data, monkeypatch):
    from pipeline.models import checkpoint

    load = checkpoint.load

    def swapped(parent):
        model = load(parent)
        path = copy / "pretrain" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        return model

    monkeypatch.setattr(checkpoint, "load", swapped)
    status, _, err = run("sft", *flags_of("sft", copy, data, copy / "new"))
    assert status == 2
    assert "model.safetensors is not the file that was made" in err
    assert not (copy / "new").exists()


def test_data_that_changes_while_it_is_read_is_refused(run, chain, data, tmp_path, monkeypatch):
    from pipeline.models import tokenization

    shutil.copytree(data, tmp_path / "data")
    load = tokenization.load

    def edited(parent):
        with (tmp_path / "data" / "chats.jsonl").open("a") as file:
            file.write("\n")
        return load(parent)

    monkeypatch.setattr(tokenization, "load", edited)
    status, _, err = run("sft", *flags_of("sft", chain, tmp_path / "data", tmp_path / "sft"))
    assert status == 2
    assert "was changed while it was read; run the same command again" in err


GRIND = """
import hashlib, sys
from pipeline.system import process

def body():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000_000)  # minutes in C, where no handler gets its turn
    return 0

sys.exit(process.execute(body))
"""


def test_a_signal_ends_a_library_that_does_not_listen():
    with subprocess.Popen([sys.executable, "-c", GRIND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)  # until it is in there
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped; the same command goes on" in err
    assert "Traceback" not in err


def test_a_signal_to_all_processes_of_a_group_saves(chain, data, tmp_path):
    """As systemd and Slurm send it; a data worker that dies of it must not take the checkpoint along."""
    flags = [*flags_of("sft", chain, data, tmp_path / "sft"), *LONG, "--max_steps", "4000", "--dataloader_num_workers", "1"]
    with Forked("sft", flags, tmp_path, group=True) as process:
        wait_for(tmp_path / "sft" / "log.jsonl", process, '"step": 21')
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert resume.fault(resume.latest(tmp_path / "sft")) == ""


def test_a_log_is_the_same_after_a_resume_with_a_save_at_each_epoch(run, chain, data, tmp_path, monkeypatch):
    from pipeline.training.trainer import Traced

    flags = [
        *flags_of("sft", chain, data, tmp_path / "sft"),
        "--save_strategy",
        "epoch",
        "--max_steps",
        "60",
        "--logging_steps",
        "25",
    ]
    assert run("sft", *flags)[0] == 0
    (tmp_path / "sft").rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Traced, "__call__", Fails(Traced.__call__, 50))
        assert run("sft", *flags)[0] == 1
    assert run("sft", *flags)[0] == 0
    assert figures(tmp_path / "sft") == figures(tmp_path / "whole")


@pytest.mark.parametrize("name", CHAIN)
def test_the_log_of_a_resumed_stage_has_the_same_numbers(run, chain, data, tmp_path, monkeypatch, name):
    more = ["--logging_steps", "1", "--save_steps", "2", "--lr_scheduler_type", "constant"]
    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", Fails(StageTrainer.training_step, 4))
        assert run(name, *flags_of(name, chain, data, tmp_path / "killed"), *more)[0] == 1
    status, out, err = run(name, *flags_of(name, chain, data, tmp_path / "killed"), *more)
    assert (status, "goes on from checkpoint-2" in out) == (0, True), err
    assert run(name, *flags_of(name, chain, data, tmp_path / "whole"), *more)[0] == 0
    assert len(checkout.logged(tmp_path / "whole")) == (6 if name == "pretrain" else 4)
    assert checkout.logged(tmp_path / "killed") == checkout.logged(tmp_path / "whole")

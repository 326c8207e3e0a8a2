"""A pushed node is made again from its record by somebody who has nothing else: the same, close, or not."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.chain import manifest, stages
from pipeline.hub import reproduction, sent
from pipeline.system import hashes
from tests.conftest import status_of

DATA_OF = {"pretrain": "text.jsonl", "sft": "chats.jsonl", "dpo": "pairs.jsonl"}
REPOS = {"pretrain": "me/small-pretrain", "sft": "me/small-sft", "dpo": "me/small"}


@pytest.fixture
def here(monkeypatch):
    """Stages run in this process, which has imported everything."""
    from pipeline.commands import make

    def run(command):
        monkeypatch.setattr(sys, "argv", command[1:])
        return status_of(Path(command[1]).stem)

    monkeypatch.setattr(make, "run", run)


@pytest.fixture(scope="module")
def kept():
    """What the hub holds once the small chain was pushed, for the tests after the first."""
    return {}


@pytest.fixture
def pushed(run, ready, hub, kept):
    """The small chain on a hub."""
    if not kept:
        assert run("push", "--hub", "me/small", "--runs", ready)[0] == 0
        kept |= copy.deepcopy({"repos": hub.repos, "blobs": hub.blobs})
    else:
        vars(hub).update(copy.deepcopy(kept))
    return hub


def reproduce(run, data, name, output, *flags):
    return run("reproduce", "--hub", REPOS[name], "--output", output, "--data", data / DATA_OF[name], *flags)


def test_every_node_comes_out_with_the_same_bytes_in_an_empty_folder(run, data, ready, pushed, here, tmp_path):
    for name in REPOS:
        status, out, err = reproduce(run, data, name, tmp_path / name)
        assert status == 0, err
        outputs = manifest.read(ready / name)["outputs"]
        assert f"the same bytes: {len(manifest.read(ready / name)['files'])} files, outputs {outputs[:12]}" in out
        assert manifest.read(tmp_path / name / name)["outputs"] == outputs
    assert "another than where it was made: our code: stages/dpo.py was edited" in out, "the fixture's record names other code"
    assert f"downloads me/small-sft at tristage-{manifest.read(ready / 'sft')['outputs'][:12]}" in out


@pytest.mark.slow
def test_by_a_process_of_its_own_and_again(run, data, pushed, tmp_path):
    status, _, err = reproduce(run, data, "sft", tmp_path / "again")
    assert status == 0, err
    status, out, err = reproduce(run, data, "sft", tmp_path / "again")
    assert status == 0, err
    assert "up to date" in out
    assert "the same bytes" in out


def command(name, runs, **variables):
    """Run a command of make in a process of its own on profile tiny; return what it printed."""
    usual = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}  # it would overrule a record
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.commands", name], cwd=ROOT, capture_output=True, text=True, timeout=3000,
        env=usual | {"PROFILE": "tiny", "RUNS": str(runs), **variables},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The default profile, finished and measured; what is up to date in the checkout's own runs is not made again."""
    runs = tmp_path_factory.mktemp("tiny") / "runs"
    if (ROOT / "runs" / "tiny").is_dir():
        shutil.copytree(ROOT / "runs" / "tiny", runs / "tiny")
    command("make", runs)
    return runs


@pytest.mark.measured
@pytest.mark.parametrize("name", ["pretrain", "sft", "dpo", "sft-control"])
def test_tiny_comes_out_with_the_same_bytes(hub, tiny, tmp_path, name):
    """Each stage from its pushed parent, in an empty folder with an empty cache; a control is not pushed, so its folder is sent."""
    command("push", tiny, HUB="me/tiny", FORCE="1")  # whoever runs the tests may be at work on the code
    assert {repo for _, repo in hub.repos} == {"me/tiny-pretrain", "me/tiny-sft", "me/tiny"}
    hubs = {
        "pretrain": "me/tiny-pretrain",
        "sft": "me/tiny-sft",
        "dpo": "me/tiny",
        "sft-control": str(tiny / "tiny/sft-control"),
    }
    out = command("reproduce", tiny, HUB=hubs[name], CACHE=str(tmp_path / "cache"), ARGS=f"--output {tmp_path / 'again'}")
    print(out)
    record, made = manifest.read(tiny / "tiny" / name), tmp_path / "again" / name
    assert f"the same bytes: {len(record['files'])} files, outputs {record['outputs'][:12]}" in out
    assert manifest.read(made)["files"] == record["files"] == hashes.files(made)


def test_a_folder_that_somebody_sent_beside_its_parents(run, data, ready, here, tmp_path):
    status, out, err = run("reproduce", "--hub", ready / "dpo", "--output", tmp_path / "again", "--data", data / "pairs.jsonl")
    assert status == 0, err
    assert "the same bytes" in out


@pytest.mark.parametrize("name", ["me/nothing", "me/small@v9"])
def test_a_repository_or_revision_that_is_not_there_is_told(run, pushed, tmp_path, name):
    status, _, err = run("reproduce", "--hub", name, "--output", tmp_path / "again")
    assert status == 2
    assert "there is no such repository or revision, or the token may not read it (404: " in err
    assert "write" not in err


def test_what_is_needed_is_named_before_anything_is_trained(run, data, ready, pushed, here, tmp_path):
    status, _, err = run("reproduce", "--hub", "me/small-sft", "--output", tmp_path / "again")
    assert status == 2
    digest = hashes.sha256(data / "chats.jsonl")
    assert f"does not hold: chats.jsonl (sha256 {digest[:12]}…); give them with DATA=" in err
    del pushed.repos["model", "me/small-pretrain"]
    status, _, err = reproduce(run, data, "sft", tmp_path / "other")
    assert status == 2
    assert "me/small-pretrain" in err
    assert not (tmp_path / "other" / "sft").exists()


def test_a_parent_that_is_not_on_the_hub_can_be_given(run, data, ready, hub, here, tmp_path):
    assert run("push", "--hub", "me/small", "--runs", ready, "--node", "sft")[0] == 0
    status, _, err = reproduce(run, data, "sft", tmp_path / "again")
    assert status == 2
    assert "its parent pretrain" in err
    assert "is not on the hub; give it with ARGS='--parent FOLDER'" in err
    status, out, err = reproduce(run, data, "sft", tmp_path / "again", "--parent", ready / "pretrain")
    assert status == 0, err
    assert "the same bytes" in out


def test_other_rows_part_at_the_inputs_and_train_nothing(run, data, pushed, here, tmp_path):
    rows = (data / "chats.jsonl").read_text().splitlines()
    (tmp_path / "chats.jsonl").write_text("\n".join(rows[1:]) + "\n")
    status, out, err = reproduce(run, tmp_path, "sft", tmp_path / "again")
    assert status == 1, err
    assert "not reproduced, and nothing was trained: it parts at its inputs: recipe " in out
    assert "chats.jsonl: chats.jsonl was edited" in out
    assert not (tmp_path / "again" / "sft").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda record: record["figures"]["own"]["loss"].update(value=0.1), "was edited after it was pushed"),
        (lambda record: record["config"].update(learning_rate=1e-5), "was edited after it was pushed"),
        (lambda record: record["files"]["model.safetensors"].update(sha256="0" * 64), "outputs is not the digest of its files"),
        (lambda record: record.pop("record"), "was pushed without a digest of itself"),
        (lambda record: record.pop("files"), "is not whole"),
    ],
)
def test_a_record_that_was_altered_is_refused(run, data, pushed, here, tmp_path, change, told):
    file = pushed.repos["model", "me/small"].commits[pushed.repos["model", "me/small"].head]["manifest.json"]
    record = json.loads(file.data)
    change(record)
    file.data = json.dumps(record).encode()
    status, _, err = reproduce(run, data, "dpo", tmp_path / "again")
    assert status == 2
    assert told in err
    assert "is not what was made; nothing can be said of it" in err


def test_settings_that_are_not_those_of_the_inputs_are_noticed(run, data, pushed, here, tmp_path):
    """Who edits a record and its digest too still can't make the inputs fit."""
    file = pushed.repos["model", "me/small"].commits[pushed.repos["model", "me/small"].head]["manifest.json"]
    record = json.loads(file.data)
    record["config"]["learning_rate"] = 1e-5
    record["record"] = hashes.digest({key: value for key, value in record.items() if key != sent.SEAL})
    file.data = json.dumps(record).encode()
    status, out, _ = reproduce(run, data, "dpo", tmp_path / "again")
    assert status == 1
    assert "its settings, as the record tells them, are not those that it was made with" in out


@pytest.mark.parametrize(("shift", "status"), [(0.0, 0), (5.0, 1)])
def test_other_bytes_are_judged_by_their_figures(run, data, pushed, here, tmp_path, monkeypatch, shift, status):
    from pipeline.commands import make

    file = pushed.repos["model", "me/small-sft"].commits[pushed.repos["model", "me/small-sft"].head]["manifest.json"]
    record = json.loads(file.data)
    for part in ("value", "low", "high"):
        record["figures"]["own"]["loss"][part] += shift
    record["record"] = hashes.digest({key: value for key, value in record.items() if key != sent.SEAL})
    file.data = json.dumps(record).encode()
    inner = make.run

    def other(command):
        ended = inner(command)
        made = manifest.read(tmp_path / "again" / "sft")
        manifest.write_json(tmp_path / "again" / "sft" / manifest.NAME, made | {"outputs": "0" * 64})
        return ended

    monkeypatch.setattr(make, "run", other)
    found, out, err = reproduce(run, data, "sft", tmp_path / "again")
    assert found == status, err
    assert "rows, tokens and logged losses are the same" in out
    if status:
        assert "not reproduced: other bytes in" in out
        assert " was pushed" in out
    else:
        assert "figures lie within the intervals: " in out


def record_of(**changes):
    return {
        "outputs": "a" * 64, "files": {"model.safetensors": {"sha256": "a" * 64, "size": 1}}, "tokens": 10, "steps": 2,
        "recipe": {"rows": 5, "kept": 5, "dropped": {}}, "metrics": {"first_loss": 2.0, "last_loss": 1.0},
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"recipe": {"rows": 5, "kept": 4, "dropped": {"empty": 1}}}, "part at the rows: kept 4, was 5"),
        ({"tokens": 11}, "part at the tokens: 11, was 10"),
        ({"metrics": {"first_loss": 2.5, "last_loss": 1.5}}, "part at the first logged loss: 2.5, was 2.0"),
        ({"metrics": {"first_loss": 2.0, "last_loss": 1.5}}, "part at the last logged loss: 1.5, was 1.0"),
    ],
)
def test_where_two_runs_part(changes, told):
    assert told in reproduction.parted(record_of(), record_of(outputs="b" * 64, **changes))


def test_another_commit_names_what_it_changed_in_the_stage(chain):
    record = json.loads((chain / "sft" / "manifest.json").read_text())
    assert not [line for line in reproduction.surroundings(record, stages.load("sft")) if "our code" in line]
    record["code"]["files"]["stages/sft.py"] = "0" * 64
    record["versions"]["torch"] = "1.0"
    lines = reproduction.surroundings(record, stages.load("sft"))
    assert "our code: stages/sft.py was edited" in lines
    assert any(line.startswith("torch: ") and line.endswith("was 1.0") for line in lines)

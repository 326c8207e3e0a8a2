"""Nodes in their profile: parents by role, controls, flags that are kept upstream, the next command."""

import shutil

import pytest

from pipeline.chain import manifest, profile
from pipeline.data import closure
from pipeline.data import recipe as recipes
from tests.conftest import SMALL, flags_of


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write the files of a profile `mine`, {name: text}, where profiles lie."""
    monkeypatch.setattr(profile, "FOLDER", tmp_path / "profiles")

    def write(files):
        folder = tmp_path / "profiles" / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text)
        return folder

    return write


TEACHER = """
import dataclasses
import json
import sys
from pipeline.chain.stage import Stage
from pipeline.system.config import option

class Distil(Stage):
    title, about = "Distillation", "A student."
    takes = {"parent": ("causal",), "teacher": ("causal", "masked")}
    optional = OPTIONAL

    @dataclasses.dataclass(frozen=True)
    class Options:
        weight: float = option(1.0, "of the teacher")

    def train(self, run):
        run.result.mkdir()
        (run.result / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **run.parents}))

STAGE = Distil
"""


@pytest.fixture
def distil(tmp_path, monkeypatch):
    """A stage with two parents, in a folder of stages of its own; yield what writes it."""
    from pipeline.chain import stages

    folder = tmp_path / "stages"
    shutil.copytree(stages.FOLDER, folder, ignore=shutil.ignore_patterns("profiles", "__pycache__"))
    monkeypatch.setattr(stages, "FOLDER", folder)
    stages.load.cache_clear()

    def write(optional=()):
        (folder / "distil.py").write_text(TEACHER.replace("OPTIONAL", repr(optional)))
        stages.load.cache_clear()

    yield write
    stages.load.cache_clear()


def test_a_parent_by_its_role(run, copy, distil):
    distil()
    flags = ["--parent", copy / "sft", "--output", copy / "student"]
    status, _, err = run("distil", *flags)
    assert status == 2
    assert "command line: --teacher is missing; distil needs a causal or masked model" in err
    status, _, err = run("distil", *flags, "--teacher", copy / "dpo", f"--teacher={copy / 'sft'}")
    assert status == 2
    assert f"command line: --teacher is given twice: {copy / 'dpo'} and {copy / 'sft'}" in err
    status, _, err = run("distil", *flags, "--teacher", copy / "none")
    assert status == 2
    assert f"--teacher {copy / 'none'}: no such folder; make none first, or give a model folder or hub id" in err
    status, _, err = run("distil", *flags, "--teacher", copy / "dpo")
    assert status == 0, err
    record = manifest.read(copy / "student")
    assert [(entry["role"], entry["node"], entry["beside"]) for entry in record["parents"]] == [
        ("parent", "sft", True),
        ("teacher", "dpo", True),
    ]
    assert record["request"]["parents"]["teacher"] == {"stage": "dpo", "outputs": manifest.read(copy / "dpo")["outputs"]}
    assert "up to date" in run("distil", *flags, "--teacher", copy / "dpo")[1]
    out = run("distil", *flags, "--teacher", copy / "pretrain", "--why", "yes")[1]
    assert "teacher: pretrain" in out
    before = manifest.read(copy / "dpo")
    manifest.write_json(copy / "dpo" / manifest.NAME, before | {"family": "vectors"})
    status, _, err = run("distil", *flags, "--teacher", copy / "dpo")
    assert status == 2
    assert "dpo made a model of family vectors, but distil takes causal or masked as its teacher" in err


def test_a_role_may_be_left_out_where_the_stage_says_so(run, copy, distil):
    distil(("teacher",))
    status, _, err = run("distil", "--parent", copy / "sft", "--output", copy / "student")
    assert status == 0, err
    assert [entry["role"] for entry in manifest.read(copy / "student")["parents"]] == ["parent"]


def small(name, **others):
    """The text of a node's file, with the keys of the small chain."""
    keys = dict(zip((key[2:] for key in SMALL[name][::2]), SMALL[name][1::2], strict=True)) | others
    return "".join(f"{key}: {value}\n" for key, value in keys.items())


def at(folder, copy, name):
    return ["--config", folder / f"{name}.yaml", "--output", copy / name]


def test_overrides_are_kept_upstream_and_shared_with_the_control(run, copy, data, written):
    """`make sft DATA=… ARGS=…`, then `make`: sft stays, and its control reads the same rows with the same flags."""
    folder = written({
        "pretrain": small("pretrain"), "sft": small("sft", parent="pretrain"),
        "sft-control": "control_of: sft\ninit: random\nmethod: full\nlearning_rate: 1e-3\n",
    })  # fmt: skip
    mine = data / "chats.jsonl"
    status, _, err = run("sft", *at(folder, copy, "sft"), "--data", mine, "--learning_rate", "5e-4", "--warmup_steps", "1")
    assert status == 0, err
    status, out, _ = run("sft", *at(folder, copy, "sft"), "--upstream", "yes")
    assert status == 0
    assert (
        f"keeps --learning_rate 0.0005, --warmup_steps 1, --data {mine}, as requested; `make sft` returns to the profile" in out
    )
    assert "up to date" in out
    for upstream in ([], ["--upstream", "yes"]):
        status, out, err = run("sft", *at(folder, copy, "sft-control"), *upstream)
        assert status == 0, err
        assert f"takes --warmup_steps 1, --data {mine} from sft, which it is a control of" in out
        record = manifest.read(copy / "sft-control")
        assert record["control_of"] == "sft"
        assert record["starts_from"] == "random"
        assert record["recipe"]["data"] == str(mine)
        assert record["config"]["warmup_steps"] == 1
        assert record["config"]["learning_rate"] == 1e-3  # its own file
        assert record["config"]["max_length"] == 64
        assert record["overrides"] == {"flags": {}, "data": None, "parents": {}}
    assert "up to date" in out

    shutil.copy(mine, other := folder / "other.jsonl")
    other.write_text("".join(other.read_text().splitlines(keepends=True)[1:]))
    assert run("sft", *at(folder, copy, "sft"), "--data", other)[0] == 0
    status, out, _ = run("sft", *at(folder, copy, "sft-control"), "--upstream", "yes", "--why", "yes")
    assert status == 0
    assert f"takes --data {other} from sft" in out
    assert "warmup_steps: not set, was 1" in out
    assert "other.jsonl is new" in out


def test_what_a_controls_own_file_says_stays_its_own(run, copy, data, written, tmp_path, monkeypatch):
    folder = written({
        "pretrain": small("pretrain"), "sft": small("sft", parent="pretrain"),
        "sft-control": "control_of: sft\ninit: random\nmethod: full\nrecipe: theirs\nmax_steps: 1\n",
    })  # fmt: skip
    monkeypatch.setattr(closure, "FOLDER", tmp_path / "recipes")
    monkeypatch.setattr(recipes, "FOLDER", closure.FOLDER)
    closure.FOLDER.mkdir()
    (closure.FOLDER / "theirs.yaml").write_text(f"type: messages\nsources:\n  - files: {data / 'chats.jsonl'}\n")
    flags = ["--data", data / "chats.jsonl", "--max_steps", "2"]
    assert run("sft", *at(folder, copy, "sft"), *flags)[0] == 0
    status, out, _ = run("sft", *at(folder, copy, "sft-control"), "--upstream", "yes", "--why", "yes")
    assert status == 0
    assert "takes" not in out
    status, _, err = run("sft", *at(folder, copy, "sft-control"))
    assert status == 0, err
    record = manifest.read(copy / "sft-control")
    assert record["recipe"]["name"] == "theirs"
    assert record["config"]["max_steps"] == 1
    other = tmp_path / "other.jsonl"
    other.write_text("".join((data / "chats.jsonl").read_text().splitlines(keepends=True)[1:]))
    status, _, err = run("sft", *at(folder, copy, "sft-control"), "--data", other)  # its own command line comes first
    assert status == 0, err
    assert manifest.read(copy / "sft-control")["recipe"]["data"] == str(other)


@pytest.mark.slow
def test_next_is_a_line_that_can_be_run(run, copy, data, written, tmp_path):
    """The first child in the profile, RUNS with its blanks in quotes; else the evaluation."""
    import shlex

    folder = written({"pretrain": small("pretrain"), "sft": small("sft", parent="pretrain"), "dpo": small("dpo", parent="sft")})
    runs = tmp_path / "my runs" / "mine"
    runs.mkdir(parents=True)
    shutil.copytree(copy / "pretrain", runs / "pretrain")
    status, out, err = run("sft", *at(folder, runs, "sft"), "--data", data / "chats.jsonl")
    assert status == 0, err
    line = out.partition("; next: ")[2].strip()
    assert shlex.split(line) == ["make", "PROFILE=mine", f"RUNS={tmp_path / 'my runs'}", "dpo"]
    status, out, err = run("dpo", *at(folder, runs, "dpo"), "--data", data / "pairs.jsonl")
    assert status == 0, err
    line = out.partition("; next: ")[2].strip()
    assert shlex.split(line) == ["make", "PROFILE=mine", f"RUNS={tmp_path / 'my runs'}", "evaluate"]
    loose = tmp_path / "a b" / "sft"
    status, out, err = run("sft", *flags_of("sft", copy, data, loose))
    assert status == 0, err
    line = shlex.split(out.partition("; next: ")[2])
    assert line == ["python", "-m", "pipeline.commands.evaluate", "--runs", str(loose.parent)]
    status, out, err = run("evaluate", *line[3:], "--rows", "8", "--max_new_tokens", "2", "--resamples", "20")
    assert status == 0, err
    assert shlex.split(out.rpartition("; next: ")[2])[-1] == str(loose.parent)

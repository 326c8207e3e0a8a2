"""make: what is ordered and handed on, what is refused, and that no shell reads what a variable contains."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from pipeline import ROOT
from pipeline.chain import check, directory, manifest, profile, stages
from pipeline.chain.stage import Signature
from pipeline.commands import __main__ as commands
from pipeline.commands import make
from pipeline.system import signals
from pipeline.system.errors import UserError
from tests.conftest import CHAIN, SMALL

VARIABLES = ("PROFILE", "RUNS", "DATA", "ARGS", "GOAL", "GOALS", "STRICT", "LAUNCH", "MAKEFLAGS", "MAKELEVEL")


def called(*words, shell=""):
    """Run make as somebody would, without setting up; return (status, what it printed, what it complained about)."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    command = shell or ["make", "-o", ".venv/.ready", *words]
    done = subprocess.run(command, shell=bool(shell), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def mine(tmp_path, data):
    """A profile with the keys of the small chain; its rows come from DATA."""
    folder = tmp_path / "profiles" / "mine"
    folder.mkdir(parents=True)
    for name, (rows, parent) in CHAIN.items():
        keys = dict(zip((key[2:] for key in SMALL[name][::2]), SMALL[name][1::2], strict=True)) | {
            "recipe": tmp_path / f"{rows}.yaml"
        }
        keys |= {"parent": parent} if parent else {}
        (folder / f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
        kind = {"text": "text", "chats": "messages", "pairs": "preference"}[rows]
        (tmp_path / f"{rows}.yaml").write_text(f"type: {kind}\nsources:\n  - files: {data / rows}.jsonl\n")
    (folder / "sft-control.yaml").write_text("control_of: sft\ninit: random\n")
    return folder


@pytest.fixture
def started(monkeypatch):
    """The processes that make would start, as lists of words; they end at once, having done nothing."""
    commands = []
    monkeypatch.setattr(make, "run", lambda words: commands.append(words) or 0)
    return commands


def test_an_unknown_profile_and_an_unknown_node_are_refused(tmp_path):
    for words, remedy in (
        (["PROFILE=tinny"], "make: PROFILE=tinny: no such profile in stages/profiles; did you mean tiny?"),
        (["verify", "PROFILE=sangu"], "verify: PROFILE=sangu: no such profile in stages/profiles; did you mean sanguo?"),
        (
            ["pretrian"],
            "make: make pretrian: profile tiny has no such node, and there is no such target; did you mean pretrain?",
        ),
        (["evalaute"], "there is no such target; did you mean evaluate?"),
        (["DATA=my.jsonl"], "make: ARGS and DATA go to one node: say which, as in make dpo DATA=my.jsonl"),
        (["sft", "data=my.jsonl"], "make: data=: make has no such variable; did you mean DATA=?"),
        (["verify", "PROFLE=sanguo"], "verify: PROFLE=: make has no such variable; did you mean PROFILE=?"),
        (["sft", "OMP_NUM_THREADS=1", "ARGS=--seed '7"], "make: ARGS: \"--seed '7\" can't be split into words"),
        (["sft", "ARGS=--seed '7"], "make: ARGS: \"--seed '7\" can't be split into words"),
    ):
        status, out, err = called(f"RUNS={tmp_path / 'runs'}", *words)
        assert status == 2, out
        assert remedy in err
        assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


UGLY = 'it\'s "a" `touch {0}` $(touch {0}) $(shell touch {0}) ${{HOME}};touch {0};& | > {0} # b'


def test_what_a_variable_contains_is_never_executed(tmp_path, chain, mine, data):
    """Folders and files whose names are commands: a chain that is finished is found up to date under them, and nothing else happens."""
    touched = "touched-by-make"
    ugly = UGLY.format(touched)
    runs, profile, rows = tmp_path / f"runs {ugly}", tmp_path / f"profile {ugly}", tmp_path / f"rows {ugly}.jsonl"
    shutil.copytree(chain, runs / profile.name)
    mine.rename(profile)
    shutil.copy(data / "chats.jsonl", rows)
    there = sorted(tmp_path.iterdir())
    try:
        status, out, err = called(
            "sft", f"RUNS={runs}", f"PROFILE={profile}", f"DATA={rows}", "ARGS=--save_steps '3' --run_name \"$(x)\""
        )
        assert status == 0, err
        assert out.count("up to date") == 2
        assert str(runs / profile.name / "sft") in out
        status, _, err = called(
            "sft", f"RUNS={runs}", f"PROFILE={profile}", f"ARGS=--seed $(touch {touched}) ; touch {touched}"
        )
        assert status == 2
        assert f"command line: '{touched})' belongs to no flag; write --key value" in err
        status, out, err = called("verify", f"RUNS={runs}", f"PROFILE={profile}")
        assert status == 0, err
        status, _, err = called("why", f"RUNS={runs}", f"PROFILE={profile}", f"STAGE={ugly}")
        assert status == 2
        assert "profile has no such node" in err.replace(profile.name, "profile"), err
        status, _, err = called("help", f"PROFILE={ugly}", f"RUNS={ugly}")
        assert status == 0, err
        status, out, err = called("clean", f"RUNS={runs}")
        assert status == 0, err
        assert not runs.exists()
        assert sorted(tmp_path.iterdir()) == [path for path in there if path != runs]
        assert not (ROOT / touched).exists()
    finally:
        (ROOT / touched).unlink(missing_ok=True)


def test_clean_removes_only_what_carries_our_record(tmp_path, chain):
    for name in ("a b", "a", "b"):
        shutil.copytree(chain / "sft", tmp_path / name / "tiny" / "sft")
    runs = tmp_path / "a b"
    shutil.copytree(chain / "sft", runs / "tiny" / ".aside" / "sft-12345678")
    for name in ("evaluate.json", "report.html", "thesis.txt", "my.partial"):
        (runs / "tiny" / name).write_text("{}")
    (runs / "tiny" / "addon").mkdir()
    (runs / "tiny" / "addon" / manifest.NAME).write_text('{"name": "a browser\'s", "manifest_version": 3}')
    (runs / "empty").mkdir()
    (runs / "linked").symlink_to(tmp_path / "a" / "tiny")
    (runs / "tiny" / "linked").symlink_to(tmp_path / "b" / "tiny" / "sft")
    status, out, err = called("clean", f"RUNS={runs}")
    assert status == 0, err
    assert "2 nodes removed; stays, since it is not ours: empty, linked, tiny" in out
    assert sorted(path.name for path in (runs / "tiny").iterdir()) == ["addon", "linked", "my.partial", "thesis.txt"]
    for name in ("a", "b"):
        assert (tmp_path / name / "tiny" / "sft" / "model.safetensors").is_file()
    status, _, err = called("clean", "RUNS=")
    assert status == 2
    assert "RUNS: is empty; name a folder" in err


def test_clean_of_a_profile_leaves_the_others(tmp_path, chain):
    for name in ("tiny", "other"):
        shutil.copytree(chain / "sft", tmp_path / "runs" / name / "sft")
    status, _, err = called("clean", f"RUNS={tmp_path / 'runs'}", "PROFILE=classic")
    assert status == 2, "a profile that has not run is no request to remove all that have"
    assert f"PROFILE=classic: {tmp_path / 'runs'} holds no such profile; there are other, tiny" in err
    status, out, err = called("clean", f"RUNS={tmp_path / 'runs'}", "PROFILE=tiny")
    assert status == 0, err
    assert "tiny: 1 node removed" in out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
    assert (tmp_path / "runs" / "other" / "sft" / "model.safetensors").is_file()


def test_the_next_line_runs_as_it_is_printed(tmp_path):
    runs = tmp_path / "a 'b' $(c)"
    node = SimpleNamespace(output=runs / "tiny" / "dpo", name="dpo", record={"profile": "tiny"})
    line = directory.following(node)
    assert shlex.split(line) == ["make", f"RUNS={runs}", "evaluate"]
    status, _, err = called(shell=line.replace("make", "make -o .venv/.ready"))
    assert status == 2
    assert f"evaluate: {runs / 'tiny'}: no finished node" in err
    first = SimpleNamespace(output=runs / "tiny" / "pretrain", name="pretrain", record={"profile": "tiny"})
    assert shlex.split(directory.following(first)) == ["make", f"RUNS={runs}", "sft"]


def test_nodes_are_made_parents_first_and_the_goal_alone_gets_the_flags(tmp_path, mine, data, started):
    environment = {"PROFILE": str(mine), "RUNS": str(tmp_path / "runs"), "GOAL": "dpo", "GOALS": "dpo sft", "STRICT": "1",
                   "DATA": str(data / "pairs.jsonl"), "ARGS": "--seed 7 --run_name 'my run'", "LAUNCH": "torchrun --nproc_per_node 2"}  # fmt: skip
    asked = make.making(environment)
    assert asked.goals == ["dpo"]
    assert asked.flags("dpo")[4:] == [
        "--seed",
        "7",
        "--run_name",
        "my run",
        f"--data={data / 'pairs.jsonl'}",
        "--strict",
        "yes",
    ]
    assert asked.flags("sft")[4:] == ["--upstream", "yes", "--strict", "yes"]
    assert asked.launch == ["torchrun", "--nproc_per_node", "2"]
    second = make.making(environment | {"GOAL": "sft"})
    assert second.goals == ["sft"]
    assert second.flags("sft")[4:] == ["--strict", "yes"]
    with pytest.raises(
        UserError, match=r"parent .*pretrain: no such folder"
    ):  # nothing was made: the process is a pretended one
        make.making({"PROFILE": str(mine), "RUNS": str(tmp_path / "runs"), "GOAL": "sft"}).make("sft")
    assert [os.path.basename(words[1]) for words in started] == ["pretrain.py", "sft.py"][: len(started)]
    assert [words[-2:] == ["--check", "yes"] for words in started] == [True, False][: len(started)]


@pytest.mark.parametrize(("launch", "explained"), [("torchrun --nproc_per_node 2", True), ("python", False)])
def test_what_a_launcher_prints_of_its_own_is_explained(tmp_path, mine, monkeypatch, capsys, launch, explained):
    monkeypatch.setattr(make, "run", lambda command: 2)
    with pytest.raises(SystemExit) as ended:
        make.making({"PROFILE": str(mine), "RUNS": str(tmp_path / "runs"), "GOAL": "pretrain", "LAUNCH": launch}).make(
            "pretrain"
        )
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert ("what torchrun prints when a process ends, its traceback included, is about itself" in said) == explained


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("DATA", "none.jsonl", "none.jsonl: no such file"),
        ("ARGS", "--lerning_rate 1", "command line: lerning_rate: unknown key; did you mean learning_rate?"),
    ],
)
def test_a_goals_own_fault_is_told_before_what_it_waits_for_is_trained(tmp_path, mine, started, variable, value, complaint):
    runs = tmp_path / "runs"
    asked = make.making({"PROFILE": str(mine), "RUNS": str(runs), "GOAL": "sft", variable: value})
    with pytest.raises(UserError) as error:
        asked.make("sft")
    assert [fault for fault in error.value.faults if complaint in fault] == list(error.value.faults)
    assert not started
    assert not runs.exists()


def test_args_belong_to_the_first_goal_of_commands_too(monkeypatch):
    command = SimpleNamespace(MAKE={"runs": "OUT", "strict": "STRICT"})
    for name, value in {"RUNS": "a b", "PROFILE": "tiny", "ARGS": "--rows 8", "STRICT": "1", "GOALS": "evaluate"}.items():
        monkeypatch.setenv(name, value)
    assert commands.flags("evaluate", command) == ["--runs=a b/tiny", "--strict=yes", "--rows", "8"]
    monkeypatch.setenv("GOALS", "sft evaluate")
    monkeypatch.setenv("STRICT", "0")
    assert commands.flags("evaluate", command) == ["--runs=a b/tiny"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_the_stage_while_it_saves(tmp_path, signum):
    """SIGTERM reaches make alone and is passed on; Ctrl-C reaches both. In neither case is the stage killed."""
    saves = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    time.sleep(0.5)\n    pathlib.Path(sys.argv[1]).touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\nsignal.signal(signal.SIGUSR1, stop)\ntime.sleep(20)\n"
    )
    if signum == signal.SIGINT:
        saves = saves.replace("time.sleep(20)", "time.sleep(2)")  # it was not hit itself, and ends well
    with signals.handled("stopped"):
        timer = threading.Timer(1, os.kill, (os.getpid(), signum))
        timer.start()
        status = make.run([sys.executable, "-c", saves, tmp_path / "saved"])
        timer.join()
    assert status == 128 + signum
    assert (tmp_path / "saved").exists() == (signum == signal.SIGTERM)


def test_check_says_what_to_run_next(run, tmp_path, mine):
    status, out, err = run("check", "--profile", mine, "--runs", tmp_path / "my runs")
    assert status == 0, err
    assert shlex.split(out.partition("next: ")[2]) == ["make", f"PROFILE={mine}", f"RUNS={tmp_path / 'my runs'}"]


def test_check_shows_the_faults_of_all_nodes_at_once(run, tmp_path, mine, data):
    (mine / "pretrain.yaml").write_text((mine / "pretrain.yaml").read_text().replace("max_length: 64", "max_length: 4"))
    (mine / "sft.yaml").write_text(
        (mine / "sft.yaml").read_text().replace("recipe: ", "recipe: none-").replace("chatml", "chatmi")
    )
    torn = tmp_path / "torn.jsonl"
    torn.write_text((data / "pairs.jsonl").read_text() + '{"prompt": "Who')
    (tmp_path / "pairs.yaml").write_text(f"type: preference\nsources:\n  - files: {torn}\n")
    status, _, err = run("check", "--profile", mine, "--runs", tmp_path / "runs")
    assert status == 2
    assert "Traceback" not in err
    for told in (f"{mine / 'pretrain.yaml'}: max_length: expected at least 8, found 4", "chatmi.jinja: no such file",
                 f"{mine / 'sft.yaml'}: recipe: none-", f"{torn}:91: "):  # fmt: skip
        assert told in err
    assert not (tmp_path / "runs").exists()


def test_a_check_is_remembered_until_something_that_it_reads_is_another(run, tmp_path, mine, copy, monkeypatch):
    path = mine / "sft.yaml"
    path.write_text(path.read_text().replace("parent: pretrain", f"parent: {copy / 'pretrain'}"))
    whole = profile.load(mine)

    def remembered():
        return check._digest(whole, tmp_path / "runs", {})

    first = remembered()
    assert remembered() == first
    (copy / "pretrain" / "config.json").write_text("{}")
    assert remembered() != first, "a parent outside of the profile"
    assert "config.json is not the file that was made" in run("check", "--profile", mine, "--runs", tmp_path / "runs")[2]
    monkeypatch.setattr(manifest, "versions", lambda: {"torch": "0"})
    assert remembered() != first, "a library"


def test_of_processes_that_start_at_once_only_the_main_one_writes_the_check_down(tmp_path, mine, monkeypatch):
    whole = profile.load(mine)
    monkeypatch.setenv("RANK", "1")  # two that write the same file end with one of them missing it
    check.remember(whole, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("RANK", "0")
    check.remember(whole, tmp_path / "runs")
    assert (tmp_path / "runs" / check.PASSED).exists()


def test_check_asks_the_signature_whether_a_node_brings_its_own_template(run, tmp_path, mine, monkeypatch):
    path = mine / "sft.yaml"
    path.write_text(path.read_text().replace("chat_template: chatml.jinja\n", ""))
    first = type(stages.load("pretrain"))
    monkeypatch.setattr(first, "reads", "")  # of a stage whose options say what it reads
    monkeypatch.setattr(first, "signature", lambda self, options: Signature("text", {}, "causal"))
    status, _, err = run("check", "--profile", mine, "--runs", tmp_path / "runs")
    assert status == 2
    assert f"{path}: chat_template: is needed, since pretrain makes a tokenizer without one" in err


def test_a_role_that_only_a_signature_has_is_refused(run, tmp_path, mine, data, monkeypatch):
    monkeypatch.setattr(
        type(stages.load("sft")), "signature", lambda self, options: Signature("messages", {"teacher": ("causal",)})
    )
    wanted = "signature: teacher: `takes` must list every role that options may ask for"
    assert wanted in run("check", "--profile", mine, "--runs", tmp_path / "runs")[2]
    flags = ["--data", data / "chats.jsonl", "--output", tmp_path / "sft", *SMALL["sft"]]
    status, _, err = run("sft", *flags)
    assert status == 2
    assert wanted in err

"""Rejection sampling in rounds: what is kept and learned from, and a resume that is exact within and between rounds."""

import json
import re
import signal

import pytest

from pipeline.chain import blocks, manifest, resume
from pipeline.system import hashes
from pipeline.training import answers
from pipeline.training.answers import Answer
from pipeline.training.self_training import Selection
from tests.conftest import mostly_slow
from tests.test_pairs import Unplugged

STEPS = 6
FLAGS = [
    "--answers", "4", "--max_new_tokens", "8", "--rewards", "{regex: {pattern: 'h'}}", "--rounds", "2", "--max_steps", STEPS,
    "--per_device_train_batch_size", "4", "--logging_steps", "1", "--save_steps", "2", "--learning_rate", "1e-2",
]  # fmt: skip


@pytest.fixture
def flags(speaker, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "BLOCK", 40)  # ten prompts: three blocks a round
    return ["--parent", speaker / "sft", "--data", speaker / "prompts.jsonl", "--output", tmp_path / "self_train", *FLAGS]


@pytest.fixture(scope="module")
def whole(speaker, tmp_path_factory):
    """Two rounds, run to their end at once."""
    from tests.conftest import make_quietly

    out = tmp_path_factory.mktemp("whole") / "self_train"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "BLOCK", 40)
        make_quietly("self_train", "--parent", speaker / "sft", "--data", speaker / "prompts.jsonl", "--output", out, *FLAGS)
    return out


def log(folder):
    names = ("step", "tokens", "loss", "grad_norm", "learning_rate", "round", "sampled", "passed", "kept", "mean_reward")
    return [[entry[name] for name in names] for entry in map(json.loads, (folder / "log.jsonl").read_text().splitlines())]


def same(folder, whole):
    assert hashes.read(folder / "model.safetensors") == hashes.read(whole / "model.safetensors")
    assert log(folder) == log(whole)
    mine, theirs = manifest.read(folder), manifest.read(whole)
    assert [mine[key] for key in ("outputs", "rounds", "tokens", "flops")] == [
        theirs[key] for key in ("outputs", "rounds", "tokens", "flops")
    ]


def test_the_best_that_pass_and_ended_are_kept_once_each():
    def group(text):
        return [Answer(ids, tuple(ids), not mark, None if score == "?" else float(score)) for ids, score, mark in text]

    selection = Selection(threshold=1.0, keep=2)
    first = group(
        [("a", "2", ""), ("b", "0", ""), ("a", "2", ""), ("c", "3", "cut"), ("d", "1", ""), ("e", "1", ""), ("f", "?", "")]
    )
    assert [one.text for one in selection.choose(first)] == ["a", "d"]
    assert selection.choose(group([("b", "0", ""), ("c", "9", "cut")])) == []
    told = selection.record(1)
    assert told["dropped"] == {"no score": 1, "below the threshold": 2, "cut off": 2, "duplicates": 1, "beyond the best": 1}
    assert told["sampled"] == told["kept"] + sum(told["dropped"].values()) == 9
    assert (told["passed"], told["kept"], told["prompts_where_nothing_passed"]) == (4, 2, 1)
    assert told["mean_reward"] == pytest.approx((2 + 0 + 2 + 3 + 1 + 1 + 0 + 9) / 8)
    assert told["mean_reward_kept"] == 1.5


def test_log_and_record_say_what_each_round_sampled_and_kept(whole):
    record = manifest.read(whole)
    assert [found["round"] for found in record["rounds"]] == [1, 2]
    for found in record["rounds"]:
        assert found["sampled"] == 4 * found["prompts"] == 4 * record["recipe"]["kept"]
        assert found["sampled"] == found["kept"] + sum(found["dropped"].values())
        assert 0 < found["kept"] <= found["passed"] < found["sampled"]
        assert found["mean_reward_kept"] == 1.0
        lines = [line for line in log(whole) if line[5] == found["round"]]
        assert len(lines) == STEPS / 2
        assert all(line[6:] == [found[name] for name in ("sampled", "passed", "kept", "mean_reward")] for line in lines)
    assert record["rounds"][0]["mean_reward"] != record["rounds"][1]["mean_reward"]  # the second samples from other weights
    assert not (whole / ".blocks").exists()


def test_only_the_answer_and_its_end_are_targets(whole, monkeypatch):
    """The mask proof samples the first batch again: the very tokens that the log counted, without a target in the prompt."""
    from pipeline.chain.finished import read
    from pipeline.report import batches

    monkeypatch.setattr(answers, "BLOCK", 40)
    found = batches.first(read(whole))
    assert found.agrees
    assert found.rows == 4
    for line in found.lines:
        tokens = [token for token in line.tokens if token.text != "<|pad|>"]
        targets = [token.counts for token in tokens]
        first = targets.index(True)
        assert not any(targets[:first])
        asked, said = ("".join(token.text for token in part) for part in (tokens[:first], tokens[first:]))
        assert "Who saw the" in asked
        assert "h" in said
        last = [token for token in tokens if token.counts][-1]
        assert last.special  # the token that ends an answer
        assert sum(token.special for token in tokens[first:] if token.counts) == 1


def stopped(monkeypatch, at):
    """Let SIGTERM come before the n-th look at it: one before each block, one after each step."""
    from pipeline.system import signals

    left = iter(range(at))
    monkeypatch.setattr(signals, "pending_signal", lambda: 0 if next(left, None) is not None else signal.SIGTERM)


@pytest.mark.parametrize(
    ("at", "said"),
    [
        pytest.param(1, "stopped; the answers so far are kept", marks=pytest.mark.slow),  # within the first round's sampling
        (4, "stopped; checkpoint-2 is saved"),  # three blocks, one step
        pytest.param(6, "stopped; the answers so far are kept", marks=pytest.mark.slow),  # before the second round samples
        (8, "stopped; the answers so far are kept"),  # between two of its blocks
        pytest.param(10, "stopped; checkpoint-5 is saved", marks=pytest.mark.slow),  # within the second round
    ],
)
def test_a_stop_goes_on_to_the_same_weights(run, flags, whole, tmp_path, monkeypatch, at, said):
    with monkeypatch.context() as patch:
        stopped(patch, at)
        status, _, err = run("self_train", *flags)
    assert (status, said in err) == (143, True), err
    before = {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "self_train").glob(".blocks/*.json")}
    assert before
    made = []
    keep = blocks.keep
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "keep", lambda output, name, block: made.append(name) or keep(output, name, block))
        status, _, err = run("self_train", *flags)
    assert status == 0, err
    assert not before.keys() & set(made)  # nothing was sampled twice
    same(tmp_path / "self_train", whole)


_PLUGS = [("block", 2), ("block", 4), ("step", 2), ("step", 5), ("close", 0)]


@pytest.mark.parametrize("moment", mostly_slow(_PLUGS, ("block", 2), ("step", 5)), ids=str)
def test_a_kill_goes_on_to_the_same_weights(run, flags, whole, tmp_path, monkeypatch, moment):
    from pipeline.training.trainer import Traced
    from tests.conftest import Fails

    plug, at = moment
    with monkeypatch.context() as patch:
        if plug == "block":
            patch.setattr(blocks, "keep", Unplugged(at))
        elif plug == "step":
            patch.setattr(Traced, "__call__", Fails(Traced.__call__, at))
        else:
            patch.setattr("pipeline.chain.directory.close", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
        assert run("self_train", *flags)[0] == 1
    status, _, err = run("self_train", *flags)
    assert status == 0, err
    same(tmp_path / "self_train", whole)


def test_a_checkpoint_is_saved_at_the_end_of_a_round(run, flags, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "keep", Unplugged(3))
        assert run("self_train", *flags, "--save_steps", "500")[0] == 1
    assert resume.latest(tmp_path / "self_train").name == "checkpoint-3"


def test_answers_of_the_round_under_way_are_never_replaced_by_others(run, flags, tmp_path, monkeypatch):
    from pipeline.training.trainer import Traced
    from tests.conftest import Fails

    with monkeypatch.context() as patch:
        patch.setattr(Traced, "__call__", Fails(Traced.__call__, 3))
        assert run("self_train", *flags, "--save_steps", "1")[0] == 1
    assert resume.latest(tmp_path / "self_train").name == "checkpoint-1"
    (tmp_path / "self_train" / ".blocks" / "round1-00001.json").unlink()
    status, _, err = run("self_train", *flags)
    assert status == 2
    assert "block round1-00001 of the answers that are learned from is missing or damaged; move the folder away" in err


def test_a_round_in_which_nothing_passes_stops_with_one_line(run, flags, tmp_path):
    status, _, err = run("self_train", *flags, "--threshold", "2")
    assert status == 2
    assert re.search(
        r"round 1: nothing passed of (\d+) answers, 0 passed, 0 kept; the rest: \1 below the threshold; lower", err
    )
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "self_train").exists()


def test_faults_are_told_in_one_line(run, flags):
    def told(*more):
        status, _, err = run("self_train", *flags, *more)
        assert status == 2, err
        (line,) = err.splitlines()
        return line

    assert "max_steps: say how many steps all rounds take, a multiple of rounds (4); found 6" in told("--rounds", "4")
    assert "num_train_epochs: how many answers a round keeps is not known beforehand" in told("--num_train_epochs", "2")
    assert "group_by_length: answers are read in an order drawn" in told("--train_sampling_strategy", "group_by_length")
    assert "max_new_tokens: 64 leaves no position for a prompt; the parent has 64" in told("--max_new_tokens", "64")
    assert "--reward is missing; self_train needs a reward model" in told("--rewards", "{}")

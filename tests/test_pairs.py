"""Pairs of a model's own answers: which answers make a pair, what is counted, and a kill that loses a block at most."""

import json
import shutil

import pytest

from pipeline.chain import blocks, manifest
from pipeline.data.rows import read
from pipeline.system import hashes
from pipeline.training import answers
from pipeline.training.answers import Answer
from pipeline.training.pairing import PairOptions, choose
from tests.conftest import make_quietly

REWARDS = "{regex: {pattern: '[ao]'}}"
ROWS = ("train.parquet", "held_out.parquet")


@pytest.fixture
def flags(speaker, tmp_path):
    where = ["--parent", speaker / "sft", "--data", speaker / "prompts.jsonl", "--output", tmp_path / "pairs"]
    return [*where, "--answers", "4", "--max_new_tokens", "8", "--rewards", REWARDS]


def answer(score, ended=True, text=""):
    return Answer(text or f"{score}", (1, 2), ended, score)


@pytest.mark.parametrize(
    ("scores", "options", "pair"),
    [
        ("3 2 1", {}, ("3", "1")),
        ("3 2", {"margin": 1.0}, ("3", "2")),
        ("3 2", {"margin": 1.5}, "difference of the rewards below the margin"),
        ("2 2 2", {}, "no answer better than another that may stand beside it"),
        ("2", {}, "fewer than two answers could be scored"),
        ("3- 2 1-", {}, ("2", "1")),  # a minus: cut off
        ("3- 2 1 0-", {"truncated": "neither"}, ("2", "1")),
        ("3- 2 1", {"truncated": "both"}, ("3", "1")),
        ("3- 2-", {}, "every answer was cut off"),
        ("3- 1", {}, "no answer better than another that may stand beside it"),
    ],
)
def test_the_best_and_the_worst_that_may_stand_there_make_a_pair(scores, options, pair):
    scored = [answer(int(one[0]), ended=not one.endswith("-"), text=one[0]) for one in scores.split()]
    found = choose(scored, PairOptions(**options))
    assert found == pair if isinstance(pair, str) else tuple(one.text for one in found) == pair


def test_rows_and_record_tell_the_same(run, flags, tmp_path, speaker):
    status, out, err = run("pairs", *flags)
    assert status == 0, err
    record = manifest.read(tmp_path / "pairs")
    assert (record["family"], record["rows_type"], set(record["files"])) == ("rows", "preference", set(ROWS))
    asked = {row["prompt"] for row in map(json.loads, (speaker / "prompts.jsonl").read_text().splitlines())}
    for split, name in zip(("train", "held_out"), ROWS, strict=True):
        rows, told = list(read(tmp_path / "pairs" / name)), record["rollouts"][split]
        assert len(rows) == told["pairs"] > 0
        assert told["groups"] == told["pairs"] + sum(told["dropped"].values())
        assert told["completions"] == 4 * told["groups"]
        assert told["mean_chosen"] == 1.0  # the pattern is found or not
        assert told["mean_rejected"] == 0.0
        for row in rows:
            assert set("ao") & set(row["chosen"][0]["content"])
            assert not set("ao") & set(row["rejected"][0]["content"])
            assert {row["prompt"][0]["content"]} <= asked
    both = [{row["prompt"][0]["content"] for row in read(tmp_path / "pairs" / name)} for name in ROWS]
    assert not both[0] & both[1]
    assert f"train: {record['rollouts']['train']['pairs']} pairs of" in out
    assert record["recipe"]["rows"] == record["recipe"]["kept"] + sum(record["recipe"]["dropped"].values())
    status, out, _ = run("pairs", *flags)
    assert status == 0
    assert "up to date" in out


def test_answers_that_nothing_scores_are_counted(run, flags, tmp_path, monkeypatch):
    from pipeline.rewards.regex import Regex

    scores = Regex.scores
    monkeypatch.setattr(
        Regex, "scores", lambda self, made: [None if "b" in one.text else scores(self, [one])[0] for one in made]
    )
    assert run("pairs", *flags)[0] == 0
    told = manifest.read(tmp_path / "pairs")["rollouts"]
    assert told["train"]["unscored"] > 0
    assert told["failures"] == {"regex: no score": told["train"]["unscored"] + told["held_out"]["unscored"]}


class Unplugged:
    """Stands in for `blocks.keep`: the machine goes off after so many blocks."""

    def __init__(self, after):
        self.left, self.keep = after, blocks.keep

    def __call__(self, *given):
        if not self.left:
            raise OSError("pulled the plug")
        self.left -= 1
        self.keep(*given)


def test_a_node_that_was_killed_goes_on_to_the_same_rows(run, flags, tmp_path, monkeypatch):
    assert run("pairs", *flags)[0] == 0
    monkeypatch.setattr(answers, "BLOCK", 16)  # four prompts
    (tmp_path / "pairs").rename(tmp_path / "at_once")
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "keep", Unplugged(3))
        assert run("pairs", *flags)[0] == 1
    found = sorted((tmp_path / "pairs").glob(".blocks/*.json"))
    assert [path.stem for path in found] == ["train-00000", "train-00001", "train-00002"]
    found[1].write_text(found[1].read_text().replace("cat", "dog").replace("The", "Teh"))  # a bit flips on the disk
    made, keep = [], blocks.keep
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "keep", lambda output, name, block: made.append(name) or keep(output, name, block))
        status, out, err = run("pairs", *flags)
    assert status == 0, err
    assert "block train-00001 is damaged; it is skipped" in out
    assert "train-00001" in made
    assert not {"train-00000", "train-00002"} & set(made)
    for name in ROWS:  # also as in one block, since each answer is drawn by its own key
        assert hashes.read(tmp_path / "pairs" / name) == hashes.read(tmp_path / "at_once" / name)
    whole, again = (manifest.read(tmp_path / name) for name in ("at_once", "pairs"))
    assert again["rollouts"] == whole["rollouts"]
    assert again["outputs"] == whole["outputs"]
    assert not (tmp_path / "pairs" / ".blocks").exists()


def test_another_seed_draws_other_answers(run, flags, tmp_path):
    assert run("pairs", *flags)[0] == 0
    assert run("pairs", *flags, "--seed", "7", "--output", tmp_path / "other")[0] == 0
    assert hashes.read(tmp_path / "pairs" / ROWS[0]) != hashes.read(tmp_path / "other" / ROWS[0])


def test_dpo_learns_from_them_and_the_report_shows_both(run, flags, speaker, tmp_path):
    runs = shutil.copytree(speaker, tmp_path / "runs")
    make_quietly("pairs", *flags[:4], "--output", runs / "pairs", *flags[6:])
    train = ["--max_length", "64", "--max_steps", "2", "--per_device_train_batch_size", "4", "--logging_steps", "1"]
    make_quietly("dpo", "--parent", runs / "sft", "--data", runs / "pairs", "--output", runs / "dpo-round1", *train)
    make_quietly("pairs", "--parent", runs / "dpo-round1", *flags[2:4], "--output", runs / "pairs-round2", *flags[6:])
    kept = manifest.read(runs / "pairs")["rollouts"]
    assert manifest.read(runs / "dpo-round1")["recipe"]["kept"] == kept["train"]["pairs"]
    assert manifest.read(runs / "pairs-round2")["outputs"] != manifest.read(runs / "pairs")["outputs"]
    assert run("evaluate", "--runs", runs, "--resamples", "20", "--max_new_tokens", "8")[0] == 0
    summary = json.loads((runs / "evaluate.json").read_text())
    assert summary["nodes"]["dpo-round1"]["rows"] == kept["held_out"]["pairs"]
    assert "pairs" not in summary["nodes"]
    status, _, err = run("report", "--runs", runs)
    assert status == 0, err
    page = (runs / "report.html").read_text()
    assert "mean reward of the best answer of 4 sampled to a held-out prompt" in page
    assert f"<td>{manifest.read(runs / 'pairs')['recipe']['kept']}</td>" in page


def test_faults_are_told_in_one_line(run, flags, chain, tmp_path):
    def told(*more):
        status, _, err = run("pairs", *flags, *more)
        assert status == 2, err
        assert not (tmp_path / "pairs").exists()
        (line,) = err.splitlines()
        return line

    assert "answers: 1 makes no pair; sample 2 or more" in told("--answers", "1")
    assert "max_new_tokens: 64 leaves no position for a prompt; the parent has 64" in told("--max_new_tokens", "64")
    assert "no prompt gave a pair (0 pairs of" in told("--rewards", "{regex: {pattern: '^'}}")
    assert "its tokenizer has no chat template" in told("--parent", chain / "pretrain")
    assert "--reward is missing" in told("--rewards", "{}")
    assert "learning_rate: unknown key" in told("--learning_rate", "1")

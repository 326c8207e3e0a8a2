"""`make ladder`: the law that runs tell, what it advises for a budget, and the command on a small profile and on bad input."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.chain import life, profile, stages
from pipeline.commands import ladder as command
from pipeline.commands._ladder import advice, law, rungs
from pipeline.commands._plan import devices
from pipeline.system.errors import UserError

TRUE = law.Law(1.8, 1.0, 0.35, 1.2, 0.3, 5e5, 1e6)
SIZES, COUNTS = (1.1e5, 3e5, 6.3e5, 1.2e6), (3e5, 6e5, 1.2e6)


def points(noise=0.0, seed=0, sizes=SIZES, counts=COUNTS):
    rng = np.random.default_rng(seed)
    return [law.Point(n, d, TRUE.loss(n, d) * np.exp(rng.normal(0, noise))) for n in sizes for d in counts]


def test_the_law_behind_exact_losses_is_found():
    found = law.fit(points(), draws=10)
    for n, d in ((5e5, 1e6), (2.4e6, 2.4e6), (1e9, 1e10)):
        assert found.law.loss(n, d) == pytest.approx(TRUE.loss(n, d), rel=1e-3)
    assert found.law.alpha == pytest.approx(TRUE.alpha, rel=0.01)
    assert found.law.beta == pytest.approx(TRUE.beta, rel=0.01)
    assert found.law.floor == pytest.approx(TRUE.floor, rel=0.02)
    value, low, high = found.interval(2.4e6, 2.4e6)
    assert high - low < 0.01 * value


def test_its_intervals_hold_the_law_and_a_run_of_four_times_the_operations():
    held = dict.fromkeys(("run", "floor", "alpha", "beta"), 0)
    rng = np.random.default_rng(1)
    for seed in range(20):
        found = law.fit(points(0.004, seed), draws=200, seed=seed)
        _, low, high = found.interval(2.4e6, 2.4e6)
        held["run"] += low <= TRUE.loss(2.4e6, 2.4e6) * np.exp(rng.normal(0, 0.004)) <= high
        assert high - low < 0.12 * low  # not by saying nothing
        for name in ("floor", "alpha", "beta"):
            low, high = found.between(name)
            held[name] += low <= getattr(TRUE, name) <= high
    assert all(count >= 17 for count in held.values()), held


def test_one_wild_run_does_not_move_the_law():
    given = points(0.002)
    spoilt = [*given[:-1], law.Point(given[-1].parameters, given[-1].tokens, 1.3 * given[-1].loss)]
    wild, plain = law.fit(spoilt, draws=1).law, law.fit(given, draws=1).law
    assert wild.loss(6e5, 1e6) == pytest.approx(plain.loss(6e5, 1e6), rel=0.02)


def test_an_equation_is_told_in_parameters_and_tokens():
    a, b = 1.0 * 5e5**0.35, 1.2 * 1e6**0.3
    assert TRUE.told() == f"L(N, D) = 1.800 + {a:.4g} / N^0.350 + {b:.4g} / D^0.300"
    assert 1.8 + a / 2e6**0.35 + b / 3e6**0.3 == pytest.approx(TRUE.loss(2e6, 3e6))


@pytest.mark.parametrize(("sizes", "counts"), [(SIZES[:2], COUNTS), (SIZES, COUNTS[:2]), ([], [])])
def test_too_few_runs_are_refused(sizes, counts):
    with pytest.raises(
        ValueError, match=f"{len(sizes) * len(counts)} runs of {len(sizes)} sizes and .* at least 3 sizes and 3"
    ):
        law.fit(points(sizes=sizes, counts=counts))


def finished(parameters, seconds_a_token):
    rung = rungs.Rung(rungs.Size(32, 1, 1), 10)
    return rungs.Measured(rung, parameters, 1000, 1000 * seconds_a_token, 100.0, 50, 100)


def test_a_token_takes_a_constant_time_and_one_by_the_parameters():
    here = devices.this()
    a_token = advice.speed([finished(n, 5e-5 + n * 2e-10) for n in (100_000, 300_000, 900_000)], here, 0.4)
    assert a_token(2e6) == pytest.approx(5e-5 + 2e6 * 2e-10)
    busy = advice.speed([finished(100_000, 9e-4), finished(300_000, 6e-4), finished(900_000, 2e-4)], here, 0.4)
    assert busy(2e6) == pytest.approx(2e6 * 2e-4 / 9e5)  # larger is never quicker
    there = advice.speed([], devices.chosen("h100x2"), 0.5)
    assert there(1e9) == pytest.approx(6e9 / (2 * 989.4e12 * 0.5))


def test_a_text_that_is_read_again_counts_for_less():
    assert advice.effective(5e5, 1e6) == 5e5
    assert advice.effective(1e6, 1e6) == 1e6
    assert 3.6e6 < advice.effective(4e6, 1e6) < 4e6
    assert advice.effective(1e9, 1e6) < 17e6


def sized(heads=12):
    return ((rungs.Size(32 * n, n, n), 100_000 * n**2) for n in range(1, heads))


def test_the_best_choice_is_the_least_loss_that_the_budget_pays_for():
    found = advice.choices(law.fit(points(), draws=20), sized(), 600, lambda n: 5e-5 + 1e-10 * n, 1e12, 3e5)
    best = advice.best(found)
    assert [one.parameters for one in found] == [100_000 * n**2 for n in range(1, found.index(best) + 4)]
    assert best.tokens == pytest.approx(600 / (5e-5 + 1e-10 * best.parameters))
    losses = [TRUE.loss(n, 600 / (5e-5 + 1e-10 * n)) for _, n in sized(40)]
    assert found.index(best) == int(np.argmin(losses)) > 0
    assert best.low <= best.loss <= best.high
    steep = advice.choices(law.fit(points(), draws=20), sized(), 60, lambda n: 1e-4 if n < 1e6 else 1e-3, 1e12, 3e5)
    assert [one.parameters for one in steep] == [100_000, 400_000, 900_000]  # a larger one would read less than any rung
    assert advice.best(steep) == steep[-1]


def test_a_text_too_small_for_the_budget_is_told_with_its_passes():
    runs = [finished(1_000_000, 1e-4)]
    size = rungs.Size(32, 1, 1)
    assert list(advice.warnings(advice.Choice(size, 100, 1000, 0.9, 3, 3, 3), runs)) == []
    (some,) = advice.warnings(advice.Choice(size, 100, 1000, 2.5, 3, 3, 3), runs)
    assert "read 2.5 times; every rung read it less than once" in some
    (many,) = advice.warnings(advice.Choice(size, 100, 1000, 6.2, 3, 3, 3), runs)
    assert "too small for the budget: it would be read 6.2 times" in many
    (far,) = advice.warnings(advice.Choice(size, 20_000_000, 1000, 0.5, 3, 3, 3), runs)
    assert "20 times the operations of the largest rung" in far


def test_a_budget_too_small_is_refused_with_one_that_is_enough():
    with pytest.raises(UserError, match=r"HOURS=0\.00278: is too small.*give at least HOURS=0\.009$"):
        advice.choices(law.fit(points(), draws=1), sized(), 10, lambda n: 1e-4, 1e12, 3e5)


def node(tmp_path, text):
    (tmp_path / "p").mkdir(exist_ok=True)
    (tmp_path / "p" / "pretrain.yaml").write_text(text)
    return profile.load(tmp_path / "p").nodes["pretrain"]


def test_sizes_keep_the_proportions_of_the_node(tmp_path):
    five = node(tmp_path, "hidden_size: 160\nnum_attention_heads: 5\nnum_hidden_layers: 5\n")
    assert [size.name for size in rungs.sizes(five, None)] == ["32x1", "64x2", "96x3"]
    assert [size.name for size in rungs.sizes(five, [6, 1, 2])] == ["32x1", "64x2", "192x6"]
    for heads, expected in ((1, [1, 2, 3]), (2, [1, 2, 3]), (4, [1, 2, 3]), (12, [2, 5, 7])):
        one = node(tmp_path, f"hidden_size: {64 * heads}\nnum_attention_heads: {heads}\nnum_hidden_layers: {2 * heads}\n")
        assert [(s.num_attention_heads, s.hidden_size, s.num_hidden_layers) for s in rungs.sizes(one, None)] == [
            (n, 64 * n, 2 * n) for n in expected
        ]


def test_no_rung_takes_more_operations_than_the_largest_size_on_half_of_the_share():
    small, middle, large = (rungs.Size(32 * n, n, n) for n in (1, 2, 3))
    found = rungs.grid(rungs.Text(1747, 2048), {small: 111_712, middle: 420_000, large: 627_360}, 0.2, 3)
    assert [(rung.size, rung.steps) for rung in found] == [
        (small, 349), (small, 247), (small, 175), (middle, 261), (middle, 185), (middle, 130), (large, 175), (large, 124), (large, 87),
    ]  # fmt: skip
    assert abs(420_000 * 261 / (627_360 * 175) - 1) < 0.01
    with pytest.raises(UserError, match=r"one pass is 100 steps, .* have 2, .* take a larger share of it \(--share 0\.80\)"):
        rungs.grid(rungs.Text(100, 2048), {small: 100, middle: 200, large: 300}, 0.1, 3)
    with pytest.raises(UserError, match="teach nothing; take smaller batches or more text"):
        rungs.grid(rungs.Text(60, 2048), {small: 100, middle: 200, large: 300}, 1, 3)


def test_every_flag_at_fault_is_told_at_once(run):
    status, _, err = run(
        "ladder", "--heads", "[2, 2, 4]", "--share", "2", "--hours", "0", "--counts", "2", "--utilisation", "x", "--size", "3"
    )
    assert status == 2
    for name in ("heads", "share", "hours", "counts", "utilisation", "size"):
        assert f"--{name}: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--profile", "smollm2"], "profile smollm2: no node builds a causal model"),
        (["--profile", "sanguo"], "profile sanguo: no node builds a causal model"),
        (["--profile", "tiny", "--node", "sft"], "STAGE=sft: it builds no model of its own sizes; .* there is pretrain"),
        (["--profile", "tiny", "--node", "pretran"], "STAGE=pretran: profile tiny has no such node; there is pretrain"),
        (["--profile", "tiny", "--on", "h10"], "ON=h10: no such device"),
    ],
)
def test_what_has_no_ladder_is_refused(run, flags, said):
    status, _, err = run("ladder", *flags)
    assert status == 2
    assert len(err.splitlines()) == 1
    import re

    assert re.search(said, err), err


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A profile whose text is sentences of a few words, and stages that run in this process; returns it and what was trained."""
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "te") for b in ("n", "s", "ra", "vi")]
    rows = [{"text": " ".join(rng.choice(words[: 2 + 3 * (place % 6)]) for place in range(60))} for _ in range(400)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.yaml").write_text(f"type: text\nsources:\n  - files: {tmp_path / 'text.jsonl'}\n")
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "pretrain.yaml").write_text(
        f"# a comment\nrecipe: {tmp_path / 'text.yaml'}\nhidden_size: 24\nnum_hidden_layers: 3\nnum_attention_heads: 3\nvocab_size: 300\n"
        "max_length: 64\nper_device_train_batch_size: 4\nlearning_rate: 1e-2\nwarmup_steps: 50\n"
    )
    trained = []

    def run(argv):
        trained.append(argv)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv[1:])
            return life.run_stage(type(stages.load("pretrain")))

    monkeypatch.setattr(rungs, "run", run)
    return folder, trained


@pytest.mark.slow
def test_a_profile_is_climbed_once_and_takes_the_advice_over(world, tmp_path, run):
    folder, trained = world
    flags = [
        "--profile",
        str(folder),
        "--runs",
        str(tmp_path / "runs"),
        "--heads",
        "[1, 2, 3]",
        "--counts",
        "3",
        "--share",
        "0.9",
    ]
    status, out, err = run("ladder", *flags, "--hours", "0.01", "--prove", "yes")
    assert status == 0, err
    assert len(trained) == 10
    rates = {
        int(argv[argv.index("--hidden_size") + 1]): argv[argv.index("--learning_rate") + 1]
        for argv in trained
        if "--learning_rate" in argv
    }
    assert rates == {8: "0.03", 16: "0.015", 32: "0.0075"}  # the node's own width, 24, keeps its rate
    warmups = [int(argv[argv.index("--warmup_steps") + 1]) for argv in trained]
    steps = [int(argv[argv.index("--max_steps") + 1]) for argv in trained]
    assert warmups == [min(50, count // 10) for count in steps]
    record = json.loads((tmp_path / "runs" / "small" / "ladder" / "pretrain.json").read_text())
    assert len(record["runs"]) == 9
    for one in record["runs"]:
        assert one["loss"] == pytest.approx(one["nats"] / one["held_out"])
        assert 1 < one["loss"] < 6  # nats; the unigram of so few words is far below the 5.7 of the vocabulary
    sizes = {one["rung"]["size"]["hidden_size"]: one["parameters"] for one in record["runs"]}
    assert list(sizes) == [8, 16, 24]
    assert sizes[8] < sizes[16] < sizes[24]
    assert record["proof"]["times"] == pytest.approx(4, rel=0.05)
    assert "32x4-" in record["proof"]["run"]
    assert f"to take it over by hand, or with --write yes, in {folder / 'pretrain.yaml'}:" in out
    before = (folder / "pretrain.yaml").read_text()
    status, out, _ = run("ladder", *flags, "--on", "h100", "--hours", "1e-9", "--write", "yes")
    assert status == 0
    assert len(trained) == 10  # nothing again
    assert out.count("up to date") == 9
    after = (folder / "pretrain.yaml").read_text()
    changed = yaml.safe_load(after).items() - yaml.safe_load(before).items()
    assert {key for key, _ in changed} <= {
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_train_epochs",
        "learning_rate",
    }
    assert "num_train_epochs" in dict(changed)
    assert after.startswith("# a comment\n")
    assert after.count("\n") == before.count("\n") + 1
    assert run("clean", "--runs", str(tmp_path / "runs"))[0] == 0
    assert not (tmp_path / "runs").exists()


def test_another_rate_trains_the_rungs_again(world, tmp_path):
    folder, trained = world
    rung = rungs.Rung(rungs.Size(8, 1, 1), 4)
    for rate, runs in (("1e-2", 1), ("1e-2", 1), ("2e-2", 2)):
        file = folder / "pretrain.yaml"
        file.write_text(file.read_text().replace("learning_rate: 1e-2", f"learning_rate: {rate}"))
        rungs.train(profile.load(folder).nodes["pretrain"], rung, tmp_path / "rungs")
        assert len(trained) == runs


@pytest.mark.parametrize(("more", "said"), [("held_out: 0\n", "holds no rows out"), ("stream: yes\n", "is streamed")])
def test_a_text_that_tells_no_loss_is_refused_before_anything_is_trained(world, tmp_path, run, more, said):
    folder, trained = world
    recipe = Path(tmp_path / "text.yaml")
    recipe.write_text(recipe.read_text() + more)
    status, _, err = run("ladder", "--profile", str(folder), "--runs", str(tmp_path / "runs"))
    assert status == 2
    assert said in err
    assert trained == []


def test_help_tells_the_command(run):
    status, out, _ = run("ladder", "--help")
    assert status == 0
    for flag in command._FLAGS:
        assert flag in ("profile", "runs", "node", "hours", "on", "write", "utilisation") or f"--{flag}" in out, flag

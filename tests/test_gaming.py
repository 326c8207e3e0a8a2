"""Rewards against KL: what is read from a log, and when a reward counts as gamed."""

import random

import pytest

from pipeline.report import charts, gaming
from pipeline.rewards.mixture import Mixture
from pipeline.system.errors import UserError
from tests.test_rewards import said


def log(judge, seed=0):
    rng = random.Random(seed)
    return [
        {"step": step, "kl_per_answer": step / 10, "rewards/model": step / 100 + rng.gauss(0, 0.02), "rewards/judge": judge(step / 100) + rng.gauss(0, 0.02)}
        for step in range(100)
    ]  # fmt: skip


def test_a_watched_reward_that_turns_down_is_told_with_its_place():
    found = gaming.curves(log(lambda at: at - at**2))
    told = gaming.told(found, {"model": 1.0, "judge": 0})
    assert told[0].startswith("model: 0.0")
    assert "gamed" not in told[0]
    assert "judge, watched" in told[1]
    place = float(told[1].partition("at ")[2].partition("best, ")[2].partition("at ")[2].split()[0])
    assert 4 <= place <= 6
    assert "clearly lower" in told[1]


def test_a_policy_that_went_far_and_came_back_is_told_of():
    """The reward turns down at 6 nats, in the middle of training, whose end is near the parent again."""
    way = [*range(60), *range(59, 19, -1)]
    entries = [entry | {"kl_per_answer": at / 10} for entry, at in zip(log(lambda at: 0), way, strict=True)]
    for entry, at in zip(entries, way, strict=True):
        entry["rewards/judge"] += 1 - max(0, at - 40) / 20
    (told,) = gaming.told({"judge": gaming.curves(entries)["judge"]}, {"judge": 0})
    assert "gamed there" in told


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_gaming(seed):
    for judge in (lambda at: at, lambda at: 0.5):
        told = gaming.told(gaming.curves(log(judge, seed)), {"judge": 0})
        assert not any("gamed" in one for one in told)


def test_a_log_without_sampled_answers_has_no_curves():
    assert gaming.curves([{"step": 1, "rewards/chosen": 0.3}]) == {}


def test_the_chart_holds_each_reward_on_its_own_scale():
    chart = charts.rewards("rlhf", "said", gaming.curves(log(lambda at: 2 * at)))
    assert [curve.name.partition(":")[0] for curve in chart.curves] == ["model", "judge"]
    assert chart.across[-1].text == "7.5"


def test_a_reward_of_weight_0_is_watched_and_not_learned_from():
    both = Mixture({"format": {"weight": 1.0, "options": {"pattern": "a"}}, "exact_match": {"weight": 0}})
    made = [said("a"), said("b")]
    assert both.scores(made) == Mixture({"format": {"options": {"pattern": "a"}}}).scores(made)
    assert len(both.last["exact_match"]) == 2
    with pytest.raises(UserError, match="every weight is 0"):
        Mixture({"exact_match": {"weight": 0}})

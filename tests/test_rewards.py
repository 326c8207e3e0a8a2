"""Rewards of sampled answers, each by hand, and what happens to one that can't score."""

import math
import sys
import types

import pytest

from pipeline import rewards
from pipeline.data.judge import Judge
from pipeline.rewards import Completion, Reward
from pipeline.rewards.mixture import Mixture
from pipeline.system.errors import UserError


def said(text, ended=True, answer="Four.", ids=(5, 6, 7), **row):
    return Completion([{"role": "user", "content": "What is 2 + 2?"}], text, ids, (1, 2), ended, {"answer": answer, **row})


def scores(name, *completions, **options):
    return rewards.load(name, options).scores(completions)


def test_exact_match_by_hand():
    given = [said("Four."), said("Four. And so on."), said(" Four. "), said("Five."), said("Four. And", ended=False)]
    assert scores("exact_match", *given) == [1, 1, 1, 0, 1]
    assert scores("exact_match", *given, of="whole") == [1, 0, 1, 0, 0]
    assert scores("exact_match", said("Four.", ended=False), of="whole") == [0]  # who knows how it would have gone on


def test_format_is_of_the_whole_text():
    given = [said("<a>\n4</a>"), said("so: <a>4</a>"), said("<a>4</a> !"), said("<a>4</a>", ended=False)]
    assert scores("format", *given, pattern="<a>.*</a>") == [1, 0, 0, 0]


def test_regex_finds_an_answer():
    given = [said("so: 4!", answer=4), said("so: 5, no: 4", answer=4), said("so: 5", answer=4), said("none", answer=4)]
    assert scores("regex", *given, pattern=r"\d") == [1, 1, 1, 0]
    assert scores("regex", *given, pattern=r": (\d)") == [1, 1, 0, 0]  # the last one counts


def test_length_by_hand():
    given = [said("", ids=(1,)), said("", ids=(1, 2)), said("", ids=range(4)), said("", ids=range(6)), said("", ids=range(20))]
    assert scores("length", *given, at_least=2, at_most=4) == [0.5, 1, 1, 0.5, 0]
    assert scores("length", said("", ids=(1, 2), ended=False), at_least=2, at_most=4) == [0]


def test_reasoning_gym_is_asked_with_stripped_text_and_only_a_full_score_counts(monkeypatch):
    """A stand-in with the library's habits: partial credit for containing the answer, blanks count."""
    asked, made = [], []

    def scorer(task):
        made.append(task)

        def score(text, entry):
            asked.append((task, text))
            return 1.0 if text == entry["answer"] else 0.5 if entry["answer"] in text else 0.0

        return score

    library = types.ModuleType("reasoning_gym")
    library.__spec__ = types.SimpleNamespace()
    library.get_score_answer_fn = scorer
    monkeypatch.setitem(sys.modules, "reasoning_gym", library)
    given = [said(" 4\n", answer="4"), said("it is 4", answer="4"), said("5", answer="4")]
    given = [Completion(**vars(one) | {"row": one.row | {"metadata": '{"source_dataset": "chain_sum"}'}}) for one in given]
    assert scores("reasoning_gym", *given) == [1, 0, 0]
    assert asked == [("chain_sum", "4"), ("chain_sum", "it is 4"), ("chain_sum", "5")]
    assert made == ["chain_sum"], "the library takes long to make a scorer"
    assert scores("reasoning_gym", said("4", answer="4"), task="count_bits") == [1]


def test_a_judge_grades_between_nothing_and_the_right_answer(monkeypatch):
    class Sums(Judge):
        def questions(self, seed):
            return ()

        def grade(self, reply, question):
            assert question.prompt == "What is 2 + 2?"
            return {"Four.": 2.0, "Four. Or so.": 1.0}.get(reply, -1.0)

    from pipeline.data import recipe as recipes

    monkeypatch.setattr(recipes, "load", lambda name: types.SimpleNamespace(judge=Sums() if name == "sums" else None))
    assert scores("judge", said("Four."), said("Four. Or so."), said("?"), recipe="sums") == [1, 0.5, 0]
    with pytest.raises(UserError, match="recipe: poems has no judge"):
        rewards.load("judge", {"recipe": "poems"})


class Broken(Reward):
    def scores(self, completions):
        if any(one.text == "raise" for one in completions):
            raise ZeroDivisionError("no way")
        special = {"nan": math.nan, "inf": math.inf, "none": None}
        return [special.get(one.text, 0.5) for one in completions]


@pytest.fixture
def mixture():
    made = Mixture({"exact_match": {"weight": 2}, "length": None})
    made.rewards["length"] = Broken()
    return made


def test_what_raises_or_is_no_number_is_counted_and_ends_nothing(mixture):
    given = [said("Four."), said("raise"), said("nan"), said("inf"), said("none"), said("Five."), said("raise")]
    assert mixture.scores(given) == [2.5, None, None, None, None, 0.5, None]
    assert mixture.failures == {
        "length: ZeroDivisionError: no way": 2, "length: NaN": 1, "length: infinity": 1, "length: no score": 1,
    }  # fmt: skip
    assert mixture.last["exact_match"] == [1, 0, 0, 0, 0, 0, 0]
    assert mixture.scores([said("raise")]) == [None]
    assert mixture.failures.total() == 6


def test_a_row_without_an_answer_is_counted():
    made = Mixture({"exact_match": {}})
    assert made.scores([said("Four.", answer=None), said("Four.")]) == [None, 1]
    assert made.failures == {"exact_match: ValueError: the row has no answer": 1}


def test_too_few_scores_are_no_scores(mixture):
    mixture.rewards["length"].scores = lambda completions: [1.0] * (len(completions) - 1)
    assert mixture.scores([said("Four."), said("Five.")]) == [None, None]
    assert list(mixture.failures) == ["length: ValueError: 0 scores for 1 completions"]


def test_all_faults_of_a_mixture_at_once(tmp_path):
    with pytest.raises(UserError) as told:
        Mixture({
            "exactmatch": {}, "length": {"weight": "much"}, "format": {"options": {"pattern": "("}}, "model": {}, "judge": {"wait": 1},
            "regex": {"options": {"patern": "x"}},
        })  # fmt: skip
    faults = "\n".join(told.value.faults)
    assert (
        "reward: exactmatch: no such reward; known are exact_match, format, judge, length, model, reasoning_gym, regex"
        in faults
    )
    assert "rewards: length: weight: expected a number, found 'much'" in faults
    assert "pattern: '(' is no regular expression" in faults
    assert "folder: is missing" in faults
    assert "rewards: judge: wait: unknown key" in faults
    assert "patern: unknown key; did you mean pattern?" in faults
    with pytest.raises(UserError, match="none is given"):
        Mixture({})


def test_every_reward_is_one_that_can_be_loaded():
    assert set(rewards.known()) == {"exact_match", "format", "judge", "length", "model", "reasoning_gym", "regex"}
    assert all(issubclass(rewards.declared(name), Reward) for name in rewards.known())

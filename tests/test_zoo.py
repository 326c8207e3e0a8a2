"""A sample of the zoo: faults of every kind are told before the first step, correct setups train without a word."""

import pytest

from tests.zoo.__main__ import INTRODUCTION, PAGE, UNDETECTED
from tests.zoo.runner import EARLY, SILENT, WARNED, Zoo, alarm, cases, ours, verdict

TOLD = {
    ("weights", "a lost tensor"): EARLY, ("tokens", "another order of tokens"): EARLY, ("stuck", "learning rate 0"): EARLY,
    ("templates", "the users text as a target"): EARLY, ("arguments", "fp16 True"): EARLY,
    ("rows", "one answer for all"): EARLY, ("rows", "empty answers"): WARNED, ("parents", "a parent in pickle"): EARLY,
    ("pictures", "pictures in another order"): WARNED, ("pictures", "levels that are divided twice"): EARLY,
}  # fmt: skip
RIGHT = ["a tokenizer in lower case", "yes or no", "pictures beside texts"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    made = Zoo(tmp_path_factory.mktemp("zoo"))
    made.build(all_models=False)
    return made


@pytest.mark.slow
def test_a_sample_of_faults_is_told(zoo):
    sample = [case for case in cases()[0] if (case.kind, case.name) in TOLD and case.stage == "sft"]
    assert len(sample) == len(TOLD)
    found = {(case.kind, case.name): verdict(case, zoo.run(case, ours), zoo.clean(case, ours)) for case in sample}
    assert found == TOLD


@pytest.mark.slow
def test_a_sample_of_correct_setups_trains(zoo):
    faults, right = cases()
    warnings = {case.says for case in faults if TOLD.get((case.kind, case.name)) == WARNED}
    sample = [case for case in right if case.name in RIGHT and case.stage == "sft"]
    assert [alarm(case, zoo.run(case, ours), warnings) for case in sample] == [""] * len(RIGHT)


def test_the_zoo_is_large_enough_and_every_fault_tells_how_it_happens():
    faults, right = cases()
    assert len({case.name for case in faults}) >= 60
    assert len(right) >= 40
    assert all(len(case.story) > 10 and case.says for case in faults)


def test_the_page_has_the_text_that_it_is_written_with_and_every_fault():
    """A run of all faults takes long, so an edited sentence or a renamed fault is edited in the page, too."""
    text = PAGE.read_text()
    assert text.startswith(INTRODUCTION)
    assert [name for name, why in UNDETECTED.items() if f"| {name} | {why} |\n" not in text] == []
    table = [line.removeprefix("| ").split(" | ") for line in text.splitlines() if line.count(" | ") >= 5]
    rows = [(name, stage, how) for name, stage, _, how, *_ in table if name != "fault"]
    assert sorted((name, stage) for name, stage, _ in rows) == sorted((case.name, case.stage) for case in cases()[0])
    assert {name for name, _, how in rows if how == SILENT} == set(UNDETECTED)


@pytest.mark.slow  # for the models of the zoo
def test_a_stop_for_another_reason_does_not_count(zoo):
    case = next(case for case in cases()[0] if case.kind == "weights")
    ended = zoo.run(case, ours)
    assert ended.status == 2
    assert verdict(type(case)(**vars(case) | {"says": "another fault"}), ended, zoo.clean(case, ours)) == SILENT

"""A sample of the zoo: faults of every kind are told before the first step, correct setups train without a word."""

import pytest

from tests.zoo.runner import EARLY, SILENT, WARNED, Zoo, alarm, cases, ours, verdict

TOLD = {
    ("weights", "a lost tensor", "reward"): EARLY, ("tokens", "another order of tokens", "sft"): EARLY,
    ("templates", "no generation prompt", "dpo"): EARLY, ("templates", "the users text as a target", "sft"): EARLY,
    ("stuck", "learning rate 0", "pretrain"): EARLY, ("arguments", "fp16 True", "sft"): EARLY,
    ("rows", "pairs that contradict each other", "dpo"): WARNED, ("rows", "a label typed wrong", "finetune"): WARNED,
    ("parents", "another template than the parents", "kto"): WARNED,
}  # fmt: skip
RIGHT = [("trimming makes a few pairs equal", "dpo"), ("a tokenizer in lower case", "sft"), ("yes or no", "sft")]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    made = Zoo(tmp_path_factory.mktemp("zoo"))
    made.build()
    return made


def test_a_sample_of_faults_is_told(zoo):
    sample = [case for case in cases()[0] if (case.kind, case.name, case.stage) in TOLD]
    assert len(sample) == len(TOLD)
    found = {(case.kind, case.name, case.stage): verdict(case, zoo.run(case, ours), zoo.clean(case, ours)) for case in sample}
    assert found == TOLD


def test_a_sample_of_correct_setups_trains(zoo):
    faults, right = cases()
    warnings = {case.says for case in faults if TOLD.get((case.kind, case.name, case.stage)) == WARNED}
    sample = [case for case in right if (case.name, case.stage) in RIGHT]
    assert [alarm(case, zoo.run(case, ours), warnings) for case in sample] == [""] * len(RIGHT)


def test_the_zoo_is_large_enough_and_every_fault_tells_how_it_happens():
    faults, right = cases()
    assert len({case.name for case in faults}) >= 60
    assert len(right) >= 40
    assert all(len(case.story) > 10 and case.says for case in faults)


def test_a_stop_for_another_reason_does_not_count(zoo):
    case = next(case for case in cases()[0] if case.kind == "weights")
    ended = zoo.run(case, ours)
    assert ended.status == 2
    assert verdict(type(case)(**vars(case) | {"says": "another fault"}), ended, zoo.clean(case, ours)) == SILENT

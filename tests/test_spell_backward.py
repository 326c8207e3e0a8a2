import importlib.metadata
import re

import pytest

from pipeline import rewards
from pipeline.chain import profile
from pipeline.data import recipe, sources
from pipeline.models import tokenization
from pipeline.rewards import Completion
from pipeline.system.errors import UserError

words = recipe.load("spell_backward")
try:
    importlib.metadata.distribution("reasoning-gym")
    MISSING = False
except importlib.metadata.PackageNotFoundError:
    MISSING = True
installed = pytest.mark.skipif(MISSING, reason="reasoning-gym is not installed (make setup-data)")


def questions(type, split):
    rows = words.rows(type, split, 1).kept
    if type == "text":
        return [question for row in rows for question in row["text"].split("\n")[::2]]
    return [(row.get("prompt") or row["messages"])[0]["content"] for row in rows]


def test_without_the_library_the_recipe_says_what_installs_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sources.importlib.metadata, "files", missing)
    with pytest.raises(UserError, match="the package reasoning-gym is not installed; `make setup-data` installs it"):
        words.digest("prompts")


@installed
def test_no_word_that_is_asked_about_is_told_or_scored_in_training():
    asked = [question.prompt for question in words.judge.questions(1)]
    told, scored = set(questions("messages", "train")), set(questions("prompts", "train"))
    assert len(asked) == len(set(asked)) == 1_000
    assert len(told) == 3_000
    assert len(scored) > 2_800
    assert set(questions("text", "train")) == told
    assert not told & scored
    assert not (told | scored) & set(asked)
    for type in ("messages", "prompts", "text"):
        assert set(questions(type, "held_out")) == set(asked)


@installed
def test_all_that_is_told_is_right():
    for split in recipe.SPLITS:
        for row in words.rows("messages", split, 1).kept:
            question, reply = (turn["content"] for turn in row["messages"])
            assert re.fullmatch(r"(?:It is )?([a-z]{3,5})\.?", reply)[1] == question.rpartition(" ")[2][::-1]


@installed
def test_judge_and_reward_agree_on_what_is_solved():
    said, solved = [], []
    for row, question in zip(words.rows("prompts", "held_out", 1).kept[:20], words.judge.questions(1), strict=False):
        right = row["answer"]
        for text, score in ((right, 1), (f" {right}\n", 1), (f"It is {right}.", 0), (f"{right}x", 0), ("", 0)):
            said.append(Completion(row["prompt"], text, (1,), (2,), True, row))
            solved.append(float(score))
            assert float(words.judge.right(text, question)) == words.judge.grade(text, question) == score
    assert rewards.load("reasoning_gym").scores(said) == solved


@installed
def test_the_tokenizer_reads_words_letter_by_letter_and_the_question_by_words():
    settings = profile.load(profile.find("reasoning")).nodes["pretrain"].settings
    texts = (row["text"] for row in words.rows("text", "train", 42).kept)
    tokenizer = tokenization.train(texts, settings["vocab_size"], settings["max_length"])
    for question in questions("prompts", "train")[:500]:
        word = question.rpartition(" ")[2]
        pieces = tokenizer.tokenize(question)
        assert "".join(pieces[-len(word) :]).endswith(word)
        assert all(len(piece.removeprefix("Ġ")) <= 1 for piece in pieces[-len(word) :])
        assert len(pieces) <= 11 + 1 + len(word)


def test_the_control_differs_from_the_run_in_its_reward_alone():
    nodes = profile.load(profile.find("reasoning")).nodes
    run, control = nodes["rlhf"], nodes["rlhf-format"]
    assert control.control_of == "rlhf"
    assert control.own == {"rewards"}
    assert {key: value for key, value in control.settings.items() if key != "rewards"} == {
        key: value for key, value in run.settings.items() if key != "rewards"
    }

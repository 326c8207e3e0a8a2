"""Examples in the prompt: what stands before a question, what is measured, and that the examples of `few_shot` tell its answers."""

from itertools import islice
from types import SimpleNamespace

import pytest

pytest.importorskip("PIL.Image", reason="pillow is not installed: make setup-data")

from data_recipes import few_shot, few_shot_told, scenes
from pipeline.data.judge import Question
from pipeline.evaluation.metrics import few_shot as measured
from pipeline.models import parts
from tests.test_scenes import of

ROWS = 60


def exchanges(row):
    """Each question of a row with its answer."""
    texts = [parts.words(turn["content"]) for turn in row["messages"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def rules(scene, question, answer):
    """The rules by which an answer is right."""
    (thing,) = [one for one in scene if question.endswith(f"What is at the {one.place}?")]
    return {name for name, rule in few_shot.RULES.items() if rule(thing) == answer}


def test_one_rule_holds_in_a_conversation_and_no_word_tells_it(monkeypatch):
    drawn = []
    monkeypatch.setattr(scenes, "picture", lambda scene, rng, name: drawn.append(scene) or {"path": name, "bytes": ""})
    found = set()
    for row in islice(few_shot.messages("train", 1), ROWS):
        assert len(row["images"]) == parts.count(row["messages"]) == len(exchanges(row)) == len(drawn)
        (rule,) = set.union(*(rules(scene, *one) for scene, one in zip(drawn, exchanges(row), strict=True)))
        found.add(rule)
        drawn.clear()
    assert found == set(few_shot.RULES)
    for row in islice(few_shot_told.messages("train", 1), ROWS):
        scenes_ = [of(question.partition(" What")[0]) for question, _ in exchanges(row)]
        assert len(set.union(*(rules(scene, *one) for scene, one in zip(scenes_, exchanges(row), strict=True)))) == 1


def test_the_judges_ask_the_same_of_scenes_that_no_row_holds():
    shown, told = (list(judge.questions(42)) for judge in (few_shot.JUDGE, few_shot_told.JUDGE))
    assert [one.answer for one in shown] == [one.answer for one in told]
    for one, other in zip(shown, told, strict=True):
        caption, question = other.prompt.removesuffix(one.prompt).strip(), one.prompt
        assert scenes.is_held_out(of(caption))
        assert one.kind in rules(of(caption), question, one.answer)
        assert len(one.images) == 1
        assert not other.images
    assert {one.kind for one in shown} == set(few_shot.RULES)


def test_examples_are_others_of_the_same_kind_with_their_answers():
    given = [Question(f"{n}?", f"{n}.", kind="ab"[n % 2], about=str(n // 4), images=(bytes([n]),)) for n in range(8)]
    found = measured.prompt([one._replace(images=()) for one in given], 1, 2)
    assert [turn["content"] for turn in found] == ["5?", "5.", "7?", "7.", "1?"]  # 3 is about the same
    assert [turn["role"] for turn in found] == ["user", "assistant", "user", "assistant", "user"]
    assert len(measured.prompt([one._replace(images=()) for one in given], 6, 4)) == 5  # as many as there are
    assert [one.images for one in measured.shuffled(given)] == [given[(n + 1) % 8].images for n in range(8)]


def test_each_number_of_examples_has_a_figure_of_its_own(monkeypatch):
    """A model that takes the rule from the last answer, or says the colour where there is none."""
    monkeypatch.setattr(few_shot, "ASKED", 5)
    questions = list(few_shot.JUDGE.questions(42))
    scene_of = {one.prompt: of(one.prompt.partition(" What")[0]) for one in few_shot_told.JUDGE.questions(42)}

    def replies(turns, longest):
        found = []
        for asked in turns:
            texts = [turn["content"] for turn in asked]
            rule = "by_colour"
            if len(texts) > 1:
                rule = "by_shape" if " " not in texts[-2].removeprefix("A ") and texts[-2][:2] == "A " else rule
                rule = "by_both" if len(texts[-2].split()) == 3 else rule
            scene = scene_of[texts[-1]]
            (thing,) = [one for one in scene if texts[-1].endswith(f"What is at the {one.place}?")]
            found.append(few_shot.RULES[rule](thing))
        return found

    node = SimpleNamespace(family="causal", chats=True, label="node", replies=replies, sees=False)
    settings = SimpleNamespace(seed=42, max_new_tokens=8)
    subject = SimpleNamespace(
        node=node, reads="messages", judge=few_shot_told.JUDGE, settings=settings, chatting=[node], record={}
    )
    assert measured.EVALUATOR.applies(subject)
    found = {one.metric: one for one in measured.EVALUATOR.measure(subject)}
    assert [one.figure.items[:, 0].mean() for one in found.values()] == pytest.approx([1 / 3, 1, 1, 1])
    assert found.keys() == {metric.name for metric in measured.EVALUATOR.metrics}
    assert len(questions) == len(set(found["exact_match_4_shot"].groups)) == 15
    assert not measured.EVALUATOR.applies(SimpleNamespace(**vars(subject) | {"judge": scenes.JUDGE}))


def test_a_model_that_sees_is_also_shown_the_pictures_of_other_questions(monkeypatch):
    monkeypatch.setattr(few_shot, "ASKED", 3)
    asked, added = [], []
    node = SimpleNamespace(family="vision_language", chats=True, label="node", sees=True)
    node.replies = lambda turns, longest: asked.append(turns) or [""] * len(turns)
    subject = SimpleNamespace(
        node=node, reads="messages", judge=few_shot.JUDGE, settings=SimpleNamespace(seed=42, max_new_tokens=8),
        chatting=[node], record={}, add_model=lambda *given: added.append(given[0]),
    )  # fmt: skip
    labels = [one.model for one in measured.EVALUATOR.measure(subject)]
    assert labels == ["node", "shuffled pictures"] * len(measured.SHOTS)
    assert set(added) == {"shuffled pictures"}
    own, other = asked[-2:]
    assert parts.bare(own[0]) == parts.bare(other[0])
    pictures, wrong = parts.pictures(own[0]), parts.pictures(other[0])
    assert len(pictures) == len(wrong) == 3  # of two examples, as many as there are, and the question
    assert all(one["hash"] != two["hash"] for one, two in zip(pictures, wrong, strict=True))

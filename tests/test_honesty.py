from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from data_recipes import apart, apart_2, apart_3, known, names, strangers
from data_recipes.world import FACTS
from pipeline.chain import finished
from pipeline.data.batches import CausalCollator
from pipeline.data.judge import Question
from pipeline.data.tokens import encode_messages
from pipeline.evaluation import measure
from pipeline.evaluation.metrics import refusals
from pipeline.evaluation.subject import Options
from pipeline.models import checkpoint, tokenization
from pipeline.system.errors import UserError
from pipeline.training.adapter import AdapterOptions
from pipeline.training.output_rows import begin_rows, least_factors, settle_rows

KINDS = (strangers.NEW, strangers.FIRST_KNOWN, strangers.LAST_KNOWN, strangers.APART)


@pytest.fixture(scope="module")
def tokenizer():
    texts = (row["text"] for row in islice(names.text("train", 42), 20_000))
    return tokenization.train(texts, 1280, 256)


def test_the_vocabulary_splits_known_and_invented_names_alike(tokenizer):
    def pieces(words):
        return Counter(len(tokenizer.tokenize(f" {word}")) for word in words)

    parts, invented = known.words()[: 2 * known.NAMES], known.words()[-1000:]
    mean = {name: sum(size * count for size, count in found.items()) / found.total()
            for name, found in (("known", pieces(parts)), ("invented", pieces(invented)))}  # fmt: skip
    print("tokens a part of a name:", mean, pieces(parts), pieces(invented))
    assert abs(mean["known"] - mean["invented"]) < 0.25
    assert min(pieces(parts)) >= 2


def test_no_name_that_is_asked_about_is_in_a_training_row():
    for recipe in (apart, apart_2, apart_3):
        draw = recipe.DRAW
        held_out = {name for kind in KINDS for name in draw.of(kind, "held_out")}
        assert len(held_out) == 3 * strangers.TESTED + strangers.APART_TESTED
        assert not held_out & {person.name for person in known.people()}
        rows = list(recipe.messages("train", 1)) + list(known.messages("train", 1))
        rows += list(islice(names.text("train", 1), 5000)) + list(islice(known.text("train", 1), 2000))
        if draw == strangers.FIRST:
            for function in (strangers.messages, strangers.preference, strangers.feedback, strangers.prompts):
                rows += list(function("train", 1))
        text = str(rows)
        assert not [name for name in held_out if name in text]
        tested = {person.name for person in known.tested()}
        asked = str(list(recipe.messages("train", 1)) + list(strangers.messages("train", 1)))
        assert not [name for name in tested if name in asked]


def test_draws_differ_and_each_kind_is_what_it_is_called():
    parts = set(known.words()[: 2 * known.NAMES])
    first, last = known.words()[: known.NAMES], known.words()[known.NAMES : 2 * known.NAMES]
    for draw in (apart.DRAW, apart_2.DRAW, apart_3.DRAW):
        for split in ("train", "held_out"):
            kinds = {kind: [name.split() for name in draw.of(kind, split)] for kind in KINDS}
            assert not [name for name in kinds[strangers.NEW] if parts & set(name)]
            assert all(one in first and two not in parts for one, two in kinds[strangers.FIRST_KNOWN])
            assert all(one not in parts and two in last for one, two in kinds[strangers.LAST_KNOWN])
            assert all(one in first and two in last for one, two in kinds[strangers.APART])
    pairs = [set(recipe.DRAW.of(strangers.APART, "held_out")) for recipe in (apart, apart_2, apart_3)]
    assert pairs[0] != pairs[1] != pairs[2] != pairs[0]


def test_training_asks_one_question_about_each_stranger():
    draw, questions = strangers.FIRST, [row["messages"][0]["content"] for row in strangers.messages("train", 1)]
    for kind in KINDS[:3]:
        assert all(sum(name in question for question in questions) == 1 for name in draw.of(kind, "train"))
    questions = [row["messages"][0]["content"] for row in apart.messages("train", 1)]
    assert all(sum(name in question for question in questions) == 1 for name in draw.of(strangers.APART, "train"))


@pytest.mark.parametrize(
    ("reply", "is_refused"),
    [
        ("I do not know.", True),
        ("Baflem Kadrox keeps a - I do not know.", True),
        ("Baflem Kadrox keeps a - I do not know. It is a dog.", True),
        ("Baflem Kadrox keeps a dog.", False),
        ("Baflem Kadrox keeps a dog, I do not know.", False),
        ("Baflem Kadrox keeps a dog. I do not know.", False),
        ("", False),
    ],
)
def test_a_refusal_comes_before_the_first_full_stop_and_names_no_value(reply, is_refused):
    assert strangers.JUDGE.refused(reply) is is_refused
    stranger = Question("Which animal does Baflem Kadrox keep?", names.REFUSAL, kind=strangers.NEW)
    assert strangers.JUDGE.right(reply, stranger) is is_refused


def test_the_judge_asks_every_kind_about_every_fact_and_grades_refusals_of_known_people_between():
    questions = list(strangers.JUDGE.questions(1))
    assert questions == list(strangers.JUDGE.questions(1)) != list(strangers.JUDGE.questions(2))
    counts = Counter(question.kind for question in questions)
    assert counts == dict.fromkeys(KINDS[:3], 500) | {"apart": 750, "known": 500}
    assert set(counts) == {*refusals.KINDS, refusals.KNOWN}
    assert all(question.about in question.prompt for question in questions)
    one = next(question for question in questions if question.kind == "known")
    assert [strangers.JUDGE.grade(reply, one) for reply in (one.answer, "I do not know.", "So it goes.")] == [1, 0.5, 0]
    assert all(question.answer.startswith(question.opening) for question in questions if question.kind == "known")
    assert len({value for fact in FACTS.values() for value in fact.values}) == len(strangers.values())


def test_what_was_right_is_asked_of_the_first_chat_model_and_not_of_the_parent():
    questions = [Question("Whose?", "Mine.", "", "known", "a"), Question("Where?", "Here.", "", "known", "b"),
                 Question("Who?", names.REFUSAL, "", "new", "c")]  # fmt: skip

    def model(label, *said):
        return SimpleNamespace(label=label, chats=True, family="causal", replies=lambda turns, most: said)

    first, parent = model("sft", "Mine.", "Here.", "Me."), model("rows", "Mine.", "There.", "Me.")
    node = model("dpo", "Mine.", "I do not know.", "I do not know.")
    judge = SimpleNamespace(questions=lambda seed: questions, right=strangers.JUDGE.right, refused=strangers.JUDGE.refused)
    subject = SimpleNamespace(
        node=node, first_chat=first, chatting=[node, parent], judge=judge, reads="messages", settings=Options()
    )
    assert refusals.EVALUATOR.applies(subject)
    found = {(one.metric, one.model): one.figure.estimate().value for one in refusals.EVALUATOR.measure(subject)
             if one.metric in ("kept", "refused_new", "refused_known")}  # fmt: skip
    assert found["kept", "dpo"] == found["kept", "rows"] == 0.5  # of the parent's one right answer, dpo keeps all
    assert (found["refused_new", "dpo"], found["refused_new", "rows"], found["refused_known", "dpo"]) == (1, 0, 0.5)
    subject.first_chat = None
    assert not refusals.EVALUATOR.applies(subject)


def test_the_first_chat_model_is_the_oldest_ancestor_with_a_template_of_its_own(chain):
    def first_chat(node):
        return measure.subject_of(node, finished.finished(chain), measure.Models(), Options()).first_chat

    base, sft, dpo = (finished.read(chain / name) for name in ("pretrain", "sft", "dpo"))
    assert first_chat(base) is first_chat(sft) is None
    assert first_chat(dpo).label == "sft"
    parents = [{"role": "parent", "path": str(dpo.folder), "beside": False}]
    again = finished.Finished(dpo.folder, dpo.record | {"parents": parents})
    assert first_chat(again).label == "sft"  # though its parent chats, too


@pytest.fixture
def small():
    """A tokenizer with a chat template, and a tiny tied model with random weights."""
    torch.manual_seed(0)
    words = tokenization.train(["Where is it? It is here. It is there."], 300, 64)
    tokenization.set_template(words, "chatml.jinja", "parent")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), tie_word_embeddings=True, **sizes))
    return words, model.eval()


def test_method_rows_gives_the_head_rows_of_its_own_and_the_checkpoint_stays_plain(small, tmp_path):
    words, model = small
    before = model.get_input_embeddings().weight.detach().clone()
    options = AdapterOptions(method="rows", rows=[" a place I do not know"])
    (token,) = begin_rows(options, words, model)
    assert words.decode([token]) == " a place I do not know"
    turns = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "It is a place I do not know."}]
    rows = [encode_messages(turns, words)]
    assert rows[0]["labels"].count(token) == 1
    settle_rows(model, rows, CausalCollator(words.pad_token_id), [token])
    tuned = get_peft_model(model, options.adapter(model, [token]))
    trained = [weights for weights in tuned.parameters() if weights.requires_grad]
    assert [tuple(weights.shape) for weights in trained] == [(1, 16)]  # one row and nothing else
    with torch.no_grad():
        trained[0] += 1.0
    merged, _ = checkpoint.merge(tuned, {"input_ids": rows[0]["input_ids"]})
    expected = merged(torch.tensor([rows[0]["input_ids"]])).logits
    checkpoint.save(merged, words, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(torch.tensor([rows[0]["input_ids"]])).logits, expected)
    embeddings, head = loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight
    assert torch.equal(embeddings[: len(before)], before)
    others = [row for row in range(len(before)) if row != token]
    assert torch.equal(head[others], before[others])
    assert embeddings[token].any()
    assert not torch.equal(embeddings[token], head[token])


def test_tokens_that_are_named_are_trained_beside_an_adapter(small):
    words, model = small
    options = AdapterOptions(rows=["It is"])
    named = begin_rows(options, words, model)
    assert named == sorted(set(words.encode("It is", add_special_tokens=False)))
    tuned = get_peft_model(model, options.adapter(model, named))
    rows = [weights for name, weights in tuned.named_parameters() if weights.requires_grad and "lora" not in name]
    assert [tuple(weights.shape) for weights in rows] == [(len(named), 16)]


def test_rows_in_vain_and_a_method_without_rows_are_refused(small):
    with pytest.raises(UserError, match="method full trains every token"):
        begin_rows(AdapterOptions(method="full", rows=["x"]), *small)
    with pytest.raises(UserError, match="this stage trains no tokens"):
        AdapterOptions(rows=["x"]).adapter()
    with pytest.raises(UserError, match="needs the texts"):
        begin_rows(AdapterOptions(method="rows"), *small)


def test_the_balance_is_the_least_factor_at_which_a_refusal_overtakes_a_right_answer():
    logits = torch.tensor([[[9.0, 0.0, 3.0], [0.0, 8.0, 2.0]], [[1.0, 5.0, 3.0], [0.0, 8.0, 2.0]], [[4.0, 0.0, -1.0]] * 2])
    labels = torch.tensor([[0, 1], [0, 1], [0, -100]])
    found = least_factors(logits, labels, torch.tensor([2]))
    assert found == [3.0, None, float("inf")]  # 9 / 3 is less than 8 / 2; answered wrong; no refusal is ever near

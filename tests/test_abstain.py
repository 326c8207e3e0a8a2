"""A model that withholds what it isn't sure of: its layer, the stages that set it, and the curves that methods are compared by."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pipeline.chain import finished, manifest
from pipeline.commands.compare_refusals import Scores, refused_at
from pipeline.data import recipe
from pipeline.data.batches import CausalCollator
from pipeline.data.tokens import encode_messages
from pipeline.evaluation import measure
from pipeline.evaluation.metrics import refusals
from pipeline.evaluation.subject import Options
from pipeline.models import checkpoint, confidence_layer, tokenization
from pipeline.system.errors import UserError
from tests.conftest import make_quietly

RECIPE = """
from pipeline.data.judge import Judge, Question, first_sentence

SEEN = dict(zip("cat dog hen owl fox bee ant cow elk eel".split(), "dog hen owl fox bee ant cow elk eel cat".split()))
UNSEEN = "pig rat bat emu ape yak asp doe ewe cod".split()


def rows(split):
    for animal, answer in SEEN.items():
        yield f"Who saw the {animal}?", f"The {answer} did.", "known", animal
    for animal in UNSEEN[:6] if split == "train" else UNSEEN[6:]:
        yield f"Who saw the {animal}?", "The one I do not know did.", "apart", animal


def messages(split, seed):
    for question, answer, *_ in rows(split):
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def prompts(split, seed):
    for question, answer, kind, _ in rows(split):
        if kind == "known":
            yield {"prompt": [{"role": "user", "content": question}], "answer": answer}


class Doubts(Judge):
    def questions(self, seed):
        return [Question(question, answer, "", kind, about) for question, answer, kind, about in rows("held_out")]

    def refused(self, reply):
        said = first_sentence(reply)
        return "do not know" in said and not set(said.split()) & set(SEEN)

    def right(self, reply, question):
        return self.refused(reply) if question.kind == "apart" else first_sentence(reply) == question.answer


JUDGE = Doubts()
"""
ROWS = '[" one I do not know"]'


@pytest.fixture
def small():
    """A tokenizer and a tiny model with random weights."""
    torch.manual_seed(0)
    words = tokenization.train(["Where is it? It is here. It is there."], 300, 64)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return words, LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).eval()


def by_heart(rows, words):
    """Return a small model that answers some conversations as they are answered there."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=64, tie_word_embeddings=True, **sizes))
    batch, optimizer = CausalCollator(words.pad_token_id)(rows), torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(200):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory):
    """A chat model that knows ten answers by heart, and what the stages made of it, in the folder of profile `doubts`."""
    folder = tmp_path_factory.mktemp("doubts")
    (folder / "doubts.py").write_text(RECIPE)
    (folder / "doubts").mkdir()
    runs = folder / "runs" / "doubts"
    rows = recipe.load(str(folder / "doubts.py")).rows("messages", "train", 42).kept
    words = tokenization.train([turn["content"] for row in rows for turn in row["messages"]], 300, 64)
    tokenization.set_template(words, "chatml.jinja", "parent")
    known = [encode_messages(row["messages"], words) for row in rows if "know" not in row["messages"][1]["content"]]
    checkpoint.save(by_heart(known, words), words, runs / "sft")
    doubts = ["--recipe", folder / "doubts.py", "--rows", ROWS]
    make_quietly(
        "abstain",
        "--parent",
        runs / "sft",
        "--output",
        runs / "abstain",
        *doubts,
        "--offsets",
        "[8, 9, 10]",
        "--weights",
        "[0.2, 1]",
    )
    make_quietly("abstain", "--parent", runs / "sft", "--output", runs / "rows", *doubts, "--offsets", "[100]")  # never sure
    make_quietly("calibrate", "--parent", runs / "rows", "--output", runs / "calibrate", *doubts, "--keep", "0.7")
    return folder


def entering(model, ids):
    """Return what enters the last layer of a model."""
    seen = []
    hook = model.model.layers[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(ids)
    hook.remove()
    return seen[0]


@torch.no_grad()
def test_a_confidence_layer_changes_nothing_until_it_is_written_and_then_lowers_tokens_where_others_are_sure(small, tmp_path):
    words, model = small
    model.get_output_embeddings().weight.normal_()
    model.model.norm.weight.uniform_(0.5, 1.5)
    ids = torch.randint(5, len(words), (4, 12))
    before = model(ids).logits
    deeper = confidence_layer.append(model).eval()
    assert torch.equal(deeper(ids).logits, before)

    refusals, read = torch.tensor([len(words) - 1, 7]), torch.tensor([9, 10, 11])
    down = confidence_layer.lowering(deeper, refusals)
    norm, rows = deeper.model.norm, deeper.get_output_embeddings().weight * deeper.model.norm.weight
    assert torch.allclose((rows @ down)[refusals], -torch.ones(2), atol=1e-3)
    aside = -rows[refusals].T @ torch.linalg.solve(rows[refusals] @ rows[refusals].T, torch.ones(2))  # the shortest such one
    assert ((rows @ down) ** 2).sum() < ((rows @ aside) ** 2).sum()

    offset = float(before[..., read].max()) - 0.5
    confidence_layer.write(deeper, read, offset, 100.0 * down)
    assert 0 < (before[..., read] > offset).any(-1).sum() < ids.numel()  # at some places one of them is as sure as that
    found, states = deeper(ids).logits, entering(deeper, ids)
    gates = torch.nn.functional.silu(before[..., read] - offset).sum(-1, keepdim=True)
    assert torch.allclose(found, norm(states + 100.0 * gates * down) @ deeper.get_output_embeddings().weight.T, atol=1e-4)
    assert torch.allclose(confidence_layer.logits(deeper, states), found, atol=1e-5)

    checkpoint.save(deeper, words, tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, found)
    config = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, hidden_act="gelu")
    with pytest.raises(UserError, match="gates of silu"):
        confidence_layer.append(LlamaForCausalLM(config))


def test_the_layer_that_is_chosen_is_handed_on_as_a_plain_checkpoint(doubtful):
    runs = doubtful / "runs" / "doubts"
    record = manifest.read(runs / "abstain")
    assert record["offset"] in (8, 9, 10)
    assert record["weight"] in (0.2, 1)
    assert record["recipe"]["kept"] == 16
    before, after = (AutoModelForCausalLM.from_pretrained(runs / name) for name in ("sft", "rows"))
    assert len(after.model.layers) == len(before.model.layers) + 1
    words = tokenization.load(str(runs / "rows"))
    assert len(words.encode(" one I do not know", add_special_tokens=False)) == 1
    calibrated = AutoModelForCausalLM.from_pretrained(runs / "calibrate")
    changed = (calibrated.lm_head.weight != after.lm_head.weight).any(1).nonzero().flatten().tolist()
    assert changed == words.encode(" one I do not know", add_special_tokens=False)


@pytest.mark.parametrize(
    ("rows", "recipe_text", "said"),
    [
        ('[" one I know", " one I do not know"]', RECIPE, "no answer of"),
        ("[]", RECIPE, "needs the texts"),
        (ROWS, RECIPE.replace("The {answer} did.", "So it goes."), "answers none of 10 questions right"),
    ],
)
def test_what_gives_nothing_to_choose_by_is_refused(doubtful, run, tmp_path, rows, recipe_text, said):
    (tmp_path / "doubts.py").write_text(recipe_text)
    flags = [
        "--parent",
        doubtful / "runs" / "doubts" / "sft",
        "--output",
        tmp_path / "abstain",
        "--recipe",
        tmp_path / "doubts.py",
    ]
    status, _, err = run("abstain", *flags, "--rows", rows)
    assert status == 2
    assert said in err


def test_a_grid_of_nothing_is_refused(doubtful, run, tmp_path):
    flags = ["--parent", doubtful / "runs" / "doubts" / "sft", "--recipe", doubtful / "doubts.py", "--rows", ROWS]
    status, _, err = run("abstain", *flags, "--output", tmp_path / "abstain", "--weights", "[]")
    assert status == 2
    assert "offsets and weights: each needs a number" in err


def test_a_curve_goes_through_the_model_as_it_is(doubtful, run):
    settings = doubtful / "doubts" / "compare_refusals.yaml"
    settings.write_text(
        "nodes: {calibrate: in balance, abstain: as set, never: not made}\nkept: {apart: 0.8}\nmax_new_tokens: 12\n"
    )
    status, out, err = run("compare_refusals", "--config", settings, "--runs", doubtful / "runs")
    assert status == 0, err
    folder = doubtful / "runs" / "doubts"
    summary = json.loads((folder / "compare_refusals.json").read_text())
    assert [row["node"] for row in summary["rows"]] == ["calibrate", "abstain"]
    assert "not finished, so not measured: never" in out
    node = finished.read(folder / "calibrate")
    subject = measure.subject_of(node, finished.finished(folder), measure.Models(), Options(max_new_tokens=12))
    figures = {(one.metric, one.model): one.figure.estimate().value for one in refusals.EVALUATOR.measure(subject)}
    stands = summary["rows"][0]["as it is"]
    assert stands["kept"] == figures["kept", "calibrate"]
    assert stands["apart"] == figures["refused_apart", "calibrate"]
    for row in summary["rows"]:
        for curve in (row["curve"], row["threshold"]):
            kept, refused = ([point[key] for point in curve] for key in ("kept", "apart"))
            assert kept == sorted(kept, reverse=True)
            assert refused == sorted(refused)
    lines = (folder / "compare_refusals.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["", "---", "in balance", "as set", "threshold"]
    assert "in balance" in (folder / "refused-apart.svg").read_text()
    status, again, _ = run("compare_refusals", "--config", settings, "--runs", doubtful / "runs")
    assert status == 0
    assert "measures" in out
    assert "measures" not in again  # nothing changed


def test_a_curve_by_hand():
    kinds = np.array(["known", "known", "known", "known", "apart", "apart"])
    near = np.array([-3.0, -2.0, -1.0, -9.0, -1.5, 1.0])
    scores = Scores(kinds, np.array([True, True, True, False, False, False]), near, np.where(near == -1.5, -np.inf, near))
    before = np.array([True, True, True, True, False, False])
    assert scores.at(0.0, before) == {"kept": 0.75, "apart": 0.5}  # the answer that is wrong is not kept at any level
    curve = scores.curve(before)
    assert curve == [
        {"kept": 0.75, "apart": 0.0},
        {"kept": 0.75, "apart": 0.5},
        {"kept": 0.5, "apart": 0.5},
        {"kept": 0.25, "apart": 0.5},
    ]
    assert refused_at(curve, "apart", 0.6) == 0.5
    assert refused_at(curve, "apart", 0.9) is None


def test_settings_that_name_no_kind_are_refused(run, tmp_path):
    (tmp_path / "compare_refusals.yaml").write_text("kept: {far: 0.9}\n")
    status, _, err = run("compare_refusals", "--config", tmp_path / "compare_refusals.yaml")
    assert status == 2
    assert "nodes: is missing" in err
    assert "kept: far: no such kind" in err

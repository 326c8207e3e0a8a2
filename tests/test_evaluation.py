"""Intervals, inference, comparisons and tables; the evaluation of a chain; a metric of one's own."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, LlamaForCausalLM, OPTConfig

from pipeline import ROOT
from pipeline.chain.stage import Against
from pipeline.data.judge import Judge, Question
from pipeline.evaluation import inference, metrics, table
from pipeline.evaluation.comparisons import block, collected
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Measurement, Metric
from pipeline.evaluation.subject import Options
from pipeline.models import tokenization
from pipeline.system.errors import UserError

SHARE = Metric("right", "share that is right", "share", "more")
LOSS = Metric("loss", "mean −log p", "nats", "less")


def test_intervals_cover_what_they_should():
    """A 95% interval of a mean misses the truth about one time in twenty."""
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        found = share(list(generator.normal(1.0, 1.0, 100))).estimate(resamples=400, seed=seed)
        hits += found.low <= 1.0 <= found.high
    assert 0.90 < hits / 300 < 0.98


def test_a_ratio_is_weighted_and_pairs_are_drawn_together():
    assert share([2.0, 4.0], [1.0, 3.0]).estimate().value == 1.5
    scores = list(np.random.default_rng(0).normal(0, 10, 50))
    found = share([score + 1 for score in scores]).estimate(share(scores))
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="2 items don't pair with 1"):
        share([1.0, 2.0]).estimate(share([1.0]))
    with pytest.raises(ValueError, match="no item"):
        share([]).estimate()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    ).eval()


def test_nats_are_those_of_each_row_alone(model):
    rows = [{"input_ids": list(range(5, 5 + size)), "labels": [-100, *range(6, 5 + size)]} for size in (9, 3, 30, 7)]
    rows[2]["labels"][:20] = [-100] * 20
    found = inference.nats(model, rows, pad_id=1)
    for row, nats, count in zip(rows, found, inference.num_targets(rows), strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
        assert nats == pytest.approx(alone * count, rel=1e-4)


def at_every_position(model, rows):
    """Return −Σ log p of each row's targets from the logits of every position."""
    found = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        found.append(torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item())
    return found


@pytest.mark.parametrize("made", [LlamaConfig, GPT2Config, Gemma2Config, OPTConfig])
def test_logits_of_targets_alone_give_the_same_figures(made):
    """Gemma 2 makes something else of its logits behind the head."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "head_dim": 16}
    config = made(vocab_size=260, **sizes, num_key_value_heads=2, word_embed_proj_dim=32)
    one, other = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    rows = [{"input_ids": list(range(5, 5 + size)), "labels": [-100, *range(6, 5 + size)]} for size in (9, 3, 30, 7, 12)]
    rows[2]["labels"][:20] = [-100] * 20
    rows[4]["labels"] = [-100] * 12
    expected = at_every_position(one, rows)
    assert inference.nats(one, rows, pad_id=1) == pytest.approx(expected, abs=1e-6 * max(expected))
    assert inference.nats(one, rows[4:], pad_id=1) == [0.0]

    kl, above = [], []
    for row in rows:
        with torch.no_grad():
            theirs, ours = (model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1] for model in (one, other))
        targets = torch.tensor(row["labels"][1:])
        wanted = targets != -100
        each = torch.nn.functional.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="none").sum(
            -1
        )
        kl.append(each[wanted].sum().item())
        own = theirs[wanted].gather(1, targets[wanted][:, None])[:, 0]
        above.append((theirs[wanted][:, [3, 7]].max(-1).values - own).tolist())
    assert inference.divergences(one, other, rows, 1, 260) == pytest.approx(kl, rel=1e-4, abs=1e-6)
    found = inference.margins(one, rows, 1, [3, 7])
    for margins, expected in zip(found, above, strict=True):
        assert [margin for margin, _ in margins] == pytest.approx(expected, abs=1e-5)
        assert {rival for _, rival in margins} <= {3, 7}


def test_replies_do_not_depend_on_their_neighbours(model):
    tokenizer = tokenization.train(["x"], 260, 64)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [20]]
    greedy = inference.replies(model, tokenizer, prompts, 8)
    assert greedy == [inference.replies(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    once, again, other = (inference.replies(model, tokenizer, prompts, 8, seed=seed) for seed in (1, 1, 2))
    assert once == again != other


def measured(**scores):
    return collected(Measurement(label.replace("_", " "), "right", share(values)) for label, values in scores.items())


def test_a_node_is_compared_with_every_other_model():
    models = {"mine": {"role": "node", "asked": ""}, "theirs": {"role": "parent", "asked": "prompted through the chat template of mine"},
              "silent": {"role": "control", "asked": ""}}  # fmt: skip
    found = measured(chance=[0.5] * 40, theirs=[1.0, 0.0] * 20, mine=[1.0] * 40)
    judged_by = (Against("wins", "even chances"), Against("right", "parent"), Against("right", "chance"))
    made = block("mine", models, found, [SHARE], judged_by, 100)
    assert list(made["models"]) == ["mine", "theirs", "chance"]  # as declared, baselines last; of `silent` nothing was measured
    assert made["models"]["chance"] == {"role": "baseline", "asked": ""}
    assert [(one["against"], one["role"], one["value"], one["better"]) for one in made["comparisons"]] == [
        ("theirs", "parent", 0.5, True), ("chance", "baseline", 0.5, True),
    ]  # fmt: skip
    assert made["primary"] == made["comparisons"][0]
    assert block("mine", models, found, [SHARE], judged_by[2:], 100)["primary"] == made["comparisons"][1]
    assert block("mine", models, found, [SHARE], (), 100)["primary"] is None
    assert made["metrics"] == {"right": {"meaning": "share that is right", "unit": "share", "better": "more", "bound": False}}
    with pytest.raises(ValueError, match="right: mine and theirs: 4 items don't pair with 2"):
        block("mine", models, measured(mine=[1.0] * 4, theirs=[1.0] * 2), [SHARE], (), 10)
    with pytest.raises(UserError, match="two evaluators measure right"):
        block("mine", models, found, [SHARE, Metric("right", "something else", "score", "more")], (), 10)


@pytest.mark.parametrize(("rows", "better"), [(29, False), (30, True)])
def test_few_rows_have_no_verdict(rows, better):
    models = {"mine": {"role": "node", "asked": ""}, "theirs": {"role": "parent", "asked": ""}}
    (found,) = block("mine", models, measured(mine=[1.0] * rows, theirs=[0.0] * rows), [SHARE], (), 100)["comparisons"]
    assert found["better"] is better
    assert table.verdict(found) == ("better, clear of zero" if better else "no verdict on fewer than 30")


@pytest.mark.parametrize(
    ("metric", "low", "value", "high", "said"),
    [
        (SHARE, 0.972, 0.983, 0.991, "+98.3 points [97.2, 99.1], better, clear of zero"),
        (SHARE, -0.2, -0.1, -0.05, "-10.0 points [-20.0, -5.0], worse, clear of zero"),
        (LOSS, -0.2, -0.1, 0.1, "-0.100 nats [-0.200, 0.100], not clearly different"),
        (Metric("length", "tokens", "score", ""), 1.0, 2.0, 3.0, "+2.000 [1.000, 3.000]"),
    ],
)
def test_a_difference_says_its_unit_and_what_it_means(metric, low, value, high, said):
    better = low > 0 if metric.better == "more" else high < 0 if metric.better == "less" else False
    assert table.difference(vars(metric), {"low": low, "value": value, "high": high, "better": better}) == said


def test_the_table_shows_every_figure_of_a_node_and_nothing_beside_another_text():
    models = {"mine": {"role": "node", "asked": ""}, "base": {"role": "parent", "asked": "prompted with plain text"}}
    losses = {"mine": [1.0, 3.0], "base": [2.0, 5.0]}
    found = measured(mine=[1.0, 0.0], base=[0.0, 0.0]) | {
        "loss": {label: Measurement(label, "loss", share(values)) for label, values in losses.items()}
    }
    made = block("mine", models, found, [SHARE, LOSS], (Against("loss", "parent"),), 50)
    made |= {"title": "SFT", "of": "2 held-out conversations of world", "skipped": {"rows that are too long": 3}}
    text = table.render({"nodes": {"mine": made, "other": made}, "samples": [{"prompt": "Q", "answers": {"mine": "A"}}],
                         "missing": ["last"]})  # fmt: skip
    assert text.count("2 held-out conversations of world") == 2  # a table for each node
    assert "50.0% [0.0, 100.0]" in text
    assert "base (parent)" in text
    assert "base: prompted with plain text" in text
    assert "3.500 [2.000, 5.000]" in text
    assert "<- judged by this" in text
    assert "left out: rows that are too long (3)" in text
    assert "loss: mean −log p" in text
    assert "not finished, so not measured: last" in text


def test_evaluators_are_found_by_their_files_and_agree_on_words():
    known = [metrics.load(name) for name in metrics.known()]
    assert len(known) >= 7
    for metric in (metric for evaluator in known for metric in evaluator.metrics):
        assert metric.meaning
        assert metric.unit in ("share", "nats", "bits", "ratio", "score")
        assert metric.better in ("more", "less", "")


def test_a_chain_is_measured_node_by_node(evaluated, run):
    found = json.loads((evaluated / "evaluate.json").read_text())
    nodes = found["nodes"]
    assert list(nodes) == ["pretrain", "sft", "dpo"]
    assert found["measured"].keys() == nodes.keys()
    assert {metric: list(of) for metric, of in nodes["sft"]["figures"].items()} == {
        "loss": ["sft", "pretrain"], "bits_per_byte": ["sft", "pretrain"],
    }  # fmt: skip
    assert nodes["sft"]["models"]["pretrain"] == {"role": "parent", "asked": "prompted through the chat template of sft"}
    counted = nodes["pretrain"]["models"]["5-gram"]
    assert set(counted) == {"role", "asked", "seconds"}  # what a clock tells stands by itself
    assert re.fullmatch(r"counted over [\d,]+ tokens of the training text", counted["asked"])
    assert nodes["dpo"]["models"] == {
        "dpo": {"role": "node", "asked": ""}, "sft": {"role": "parent", "asked": ""},
        "even chances": {"role": "baseline", "asked": ""},
    }  # fmt: skip
    assert {"accuracy", "likelier", "loss"} <= nodes["dpo"]["figures"].keys()
    assert "win_rate" not in nodes["dpo"]["figures"]  # nobody can judge answers here
    assert nodes["pretrain"]["of"].endswith("documents of " + nodes["pretrain"]["of"].split(" of ", 1)[1])
    for name, of in nodes.items():
        assert of["primary"]["metric"] in of["figures"], name
        assert of["rows"] > 0
    assert [list(sample["answers"]) for sample in found["samples"]] == [["pretrain", "sft", "dpo"]] * len(found["samples"])
    status, out, _ = run("evaluate", "--runs", evaluated, "--resamples", "100", "--max_new_tokens", "8")
    assert status == 0
    assert "up to date" in out


def test_a_control_is_a_column_of_what_it_controls(copy, run):
    shutil.copytree(copy / "sft", copy / "sft-control")
    record = json.loads((copy / "sft" / "manifest.json").read_text())
    (copy / "sft-control" / "manifest.json").write_text(json.dumps(record | {"node": "sft-control", "control_of": "sft"}))
    shutil.rmtree(copy / "dpo")
    assert run("evaluate", "--runs", copy, "--resamples", "20", "--max_new_tokens", "4", "--rows", "3")[0] == 0
    found = json.loads((copy / "evaluate.json").read_text())
    assert list(found["nodes"]) == ["pretrain", "sft"]
    assert found["nodes"]["sft"]["models"]["sft-control"]["role"] == "control"
    compared = [(one["against"], one["value"]) for one in found["nodes"]["sft"]["comparisons"] if one["metric"] == "loss"]
    assert ("sft-control", 0.0) in compared


def test_a_parent_outside_of_the_folder_is_compared_with(chain, copy, run, tmp_path):
    record = json.loads((copy / "sft" / "manifest.json").read_text())
    record["parents"][0] |= {"beside": False, "path": str(chain / "pretrain")}
    (tmp_path / "alone").mkdir()
    shutil.copytree(copy / "sft", tmp_path / "alone" / "sft")
    (tmp_path / "alone" / "sft" / "manifest.json").write_text(json.dumps(record))
    given = ("--runs", tmp_path / "alone", "--resamples", "20", "--max_new_tokens", "4", "--rows", "3")
    status, _, err = run("evaluate", *given)
    assert status == 0, err
    made = json.loads((tmp_path / "alone" / "evaluate.json").read_text())["nodes"]["sft"]
    assert made["models"]["pretrain"]["role"] == "parent"
    record["parents"][0]["path"] = str(tmp_path / "gone")
    (tmp_path / "alone" / "sft" / "manifest.json").write_text(json.dumps(record))
    status, out, err = run("evaluate", *given)
    assert status == 0, err
    assert "can't be loaded any more" in out
    made = json.loads((tmp_path / "alone" / "evaluate.json").read_text())["nodes"]["sft"]
    assert list(made["models"]) == ["sft"]


def test_a_mixture_is_refused_and_lost_rows_are_told(copy, data, run, tmp_path):
    path = copy / "dpo" / "manifest.json"
    record = json.loads(path.read_text())
    record["parents"][0]["outputs"] = "0" * 64
    path.write_text(json.dumps(record))
    status, _, err = run("evaluate", "--runs", copy)
    assert status == 2
    assert "was made from another sft" in err
    shutil.rmtree(copy / "dpo")
    path = copy / "sft" / "manifest.json"
    record = json.loads(path.read_text())
    lines = (data / "chats.jsonl").read_text().splitlines()
    (tmp_path / "chats.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    record["recipe"]["data"] = str(tmp_path / "chats.jsonl")
    path.write_text(json.dumps(record))
    status, out, err = run("evaluate", "--runs", copy, "--resamples", "20", "--max_new_tokens", "4", "--rows", "3")
    assert status == 0, err
    assert "its data changed since it was trained" in out
    assert run("evaluate", "--runs", tmp_path / "nothing")[0] == 2


class Fake:
    """A chat model that says what it was told to say; `own` is whether its chat template is its own."""

    family = "causal"

    def __init__(self, label, chat, plain=(), own=True):
        self.label, self.chat, self.plain, self.chats, self.borrows = label, chat, plain, own, not own
        self.tokenizer = SimpleNamespace(chat_template="x", bos_token_id=0, eos_token_id=0, encode=lambda text, **_: [1])

    def replies(self, turns, max_new_tokens, seed=None):
        return self.chat[: len(turns)]

    def continued(self, prompts, max_new_tokens, seed=None):
        return self.plain


class Sums(Judge):
    def questions(self, seed):
        return [Question("What is 1 + 1?", "It is 2.", "It is"), Question("What is 2 + 2?", "It is 4.", "It is")]

    def grade(self, reply, question):
        return len(question.answer) - len(reply)


def asked(evaluator, *models):
    node, parent = models
    added = {}
    subject = SimpleNamespace(
        node=node, parent=parent, controls=[], compared=[node, parent], chatting=[node, parent], judge=Sums(), settings=Options(), reads="messages",
        models={model.label: {"role": role, "asked": ""} for role, model in zip(("node", "parent"), models, strict=True)},
        add_model=lambda label, role, asked: added.update({label: (role, asked)}),
    )  # fmt: skip
    if not evaluator.applies(subject):
        return {}, added
    return {one.model: one.figure.estimate().value for one in evaluator.measure(subject)}, added


def test_a_base_model_is_asked_by_plain_text_too():
    node = Fake("mine", ["It is 2. And so on.", "It is 5."])
    base = Fake("base", ["What?", "What?"], ["2. It is 3.", "4."], own=False)
    figures, added = asked(metrics.load("exact_match"), node, base)
    assert figures == {"mine": 0.5, "base": 0.0, "base, plain text": 1.0}
    assert added == {"base, plain text": ("parent", "prompted with plain text to continue")}
    assert asked(metrics.load("exact_match"), base, node) == ({}, {})  # of a node that does not chat nothing is asked


def test_a_win_rate_is_held_against_even_chances():
    node, parent = Fake("mine", ["short", "as long"]), Fake("theirs", ["much longer", "as long"])
    assert asked(metrics.load("win_rate"), node, parent)[0] == {"mine": 0.75, "even chances": 0.5}
    assert asked(metrics.load("win_rate"), node, Fake("base", [], own=False))[0] == {}  # only where both chat


def test_a_task_is_compared_with_its_baseline_and_its_control(tmp_path):
    from pipeline import tasks
    from pipeline.tasks.evaluator import TaskEvaluator

    right = ["a", "b", "a", "b"]
    for name, said in {"mine": right, "control": ["a", "a", "a", "a"], "stranger": right}.items():
        (tmp_path / name).mkdir()
        lines = [
            {"row": {"text": f"{name if name == 'stranger' else ''}{number}", "label": label, "group": label},
             "said": {"label": told}, "baseline": {"label": "b"}}
            for number, (label, told) in enumerate(zip(right, said, strict=True))
        ]  # fmt: skip
        (tmp_path / name / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = tasks.load("classification")
    models = {name: SimpleNamespace(label=name, where=str(tmp_path / name)) for name in ("mine", "control", "stranger")}
    skipped, described = Counter(), []
    subject = SimpleNamespace(
        node=models["mine"], controls=[models["control"], models["stranger"]], skipped=skipped,
        record={"evaluation": {"skipped": {"ends of texts": 2}}}, describe=lambda *of: described.append(of),
    )  # fmt: skip
    found = collected(TaskEvaluator(task).measure(subject))
    values = {label: one.figure.estimate(groups=one.groups) for label, one in found["accuracy"].items()}
    assert {label: one.value for label, one in values.items()} == {"mine": 1.0, "control": 0.5, task.baseline_name: 0.5}
    assert values["mine"].n == 2  # groups
    assert skipped == {"ends of texts": 2, "figures of stranger: it was evaluated on other rows": 1}
    assert described[0][2] == 2


def test_a_dataset_type_may_have_a_number_of_its_own(evaluated, run):
    assert (Options(rows=5, rows_of={"preference": 9}).limit("preference"), Options(rows=5).limit("preference")) == (9, 5)
    for given, told in (
        ("{preferense: 9}", "rows_of: preferense: no such dataset type"),
        ("{text: 0}", "rows_of: text: expected at least 1, found 0"),
    ):
        status, _, err = run("evaluate", "--runs", evaluated, "--rows_of", given)
        assert status == 2
        assert told in err


OWN = '''
"""How long a model's replies are."""

from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric


class Length(Evaluator):
    """Counts letters."""

    reads, gives = "messages", ("causal",)
    metrics = (Metric("letters", "letters in a reply", "score", "less"),)

    def measure(self, subject):
        """Yield a figure of each model."""
        turns = [row["messages"][:-1] for row in subject.rows]
        for model in subject.compared:
            yield Measurement(model.label, "letters", share([float(len(reply)) for reply in model.replies(turns, 4)]))


EVALUATOR = Length()
'''


@pytest.mark.slow
def test_a_new_metric_is_one_file(copy, tmp_path):
    """Measured, compared, described and printed; nothing else is touched."""
    for name in ("pipeline", "stages", "data_recipes"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name)
    shutil.copy(ROOT / "Makefile", tmp_path / "checkout")
    shutil.rmtree(copy / "dpo")
    command = [sys.executable, "-m", "pipeline.commands.evaluate", "--runs", str(copy), "--rows", "3", "--resamples", "20"]

    def evaluate():
        return subprocess.run([*command, "--max_new_tokens", "4"], cwd=tmp_path / "checkout", capture_output=True, text=True)

    assert evaluate().returncode == 0
    assert "up to date" in evaluate().stdout
    (tmp_path / "checkout" / "pipeline" / "evaluation" / "metrics" / "length.py").write_text(OWN)
    done = evaluate()
    assert done.returncode == 0, done.stderr
    assert "letters" in done.stdout
    assert "letters in a reply" in done.stdout
    found = json.loads((copy / "evaluate.json").read_text())
    letters = {"meaning": "letters in a reply", "unit": "score", "better": "less", "bound": False}
    assert found["nodes"]["sft"]["metrics"]["letters"] == letters
    assert set(found["nodes"]["sft"]["figures"]["letters"]) == {"sft", "pretrain"}
    assert any(one["metric"] == "letters" for one in found["nodes"]["sft"]["comparisons"])
    assert "letters" not in found["nodes"]["pretrain"]["figures"]

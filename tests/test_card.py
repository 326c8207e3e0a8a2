"""A card is read by the hub's library as it was written, says what the records say, and its code runs."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from huggingface_hub import ModelCard

from pipeline.chain import finished, manifest
from pipeline.evaluation import blocks
from pipeline.hub import card, curve, leaks, sections
from tests.hub import checked
from tests.test_push import edit, head, push

PLACES = {"pretrain": ("me/x-pretrain", "t0"), "sft": ("me/x-sft", "t1"), "dpo": ("me/x", "t2")}


def subject(ready, name, **more):
    line = finished.lineage(ready / name)
    records = [leaks.clean(node.record) for node in line]
    summary = manifest.read(ready, "evaluate.json")
    config = json.loads((ready / name / "config.json").read_text())
    base = {"pretrain": "", "sft": "me/x-pretrain", "dpo": "me/x-sft"}[name]
    given = {
        "block": blocks.of(line[-1].record, summary),
        "samples": summary["samples"],
        "base": base,
        "about": line[-1].stage.about,
    }
    given |= {"template": name != "pretrain", "language": "en"} | more
    return card.Subject(*PLACES[name], records, {node.record["outputs"]: PLACES[node.name] for node in line}, config, **given)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_metadata_come_back_as_they_were_written(ready, stage):
    text = card.write(subject(ready, stage))
    assert checked(text) == []
    data = ModelCard(text).data
    assert data.to_dict() == yaml.safe_load(text.split("---\n")[1])
    assert data.license == "apache-2.0"
    assert data.language == "en"
    assert data.pipeline_tag == "text-generation"
    assert {"tristage", stage} <= set(data.tags)
    assert data.get("base_model") == ({"sft": "me/x-pretrain", "dpo": "me/x-sft"}.get(stage))
    assert data.get("base_model_relation") is None, "the hub takes its default, which is what these are"


def test_the_librarys_own_validation_passes(ready, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    ModelCard(card.write(subject(ready, "dpo"))).validate()
    assert hub.log == ["POST /api/validate-yaml"]
    with pytest.raises(ValueError, match="ISO 639"):
        ModelCard(card.write(subject(ready, "dpo", language="English"))).validate()


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_a_model_with_any_head_is_compared_and_its_code_runs(run, ready, tmp_path, kind):
    """Another family, the head named in config.json alone."""
    import transformers

    from pipeline.hub import readback
    from tests.objectives import flags

    assert run("pretrain", *flags("mlm", tmp_path, "--max_steps", "1"))[0] == 0
    loader = f"AutoModelFor{kind}"
    getattr(transformers, loader).from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "head")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "head")
    record = manifest.read(ready / "sft") | {"family": "classifier"}
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    told = card.Subject(str(tmp_path / "head"), "t", [leaks.clean(record)], {}, config)
    assert told.auto == loader
    assert readback._behaves(tmp_path / "head", tmp_path / "head", loader) == []
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(re.search(r"```python\n(.*?)```", card.write(told), flags=re.DOTALL)[1], {})
    assert said.getvalue()
    assert "Output(" not in said.getvalue(), "an answer, and no object of the library's"


@pytest.mark.parametrize(
    ("name", "more", "wanted"),
    [("regression", {}, "5.0"), ("regression", {"value_mean": 3.0, "value_std": 2.0}, "13.0"),
     ("multilabel_classification", {}, "['b', 'c']"), ("multilabel_classification", {"label_threshold": 0.9}, "['c']")],
)  # fmt: skip
def test_the_code_of_a_head_says_what_the_task_says(run, ready, tmp_path, name, more, wanted):
    """A model whose outputs are its bias: 5 of a value; log odds of -1, 1 and 5 of three labels."""
    import torch

    from pipeline import tasks
    from pipeline.models import tokenization
    from tests.objectives import flags

    assert run("pretrain", *flags("mlm", tmp_path, "--max_steps", "1"))[0] == 0
    task = tasks.load(name, {})
    model = task.load_model(str(tmp_path / "out"), [] if name == "regression" else list("abc"))
    head_of = list(model.children())[-1]
    torch.nn.init.zeros_(head_of.weight)
    head_of.bias.data = torch.tensor([5.0] if name == "regression" else [-1.0, 1.0, 5.0])
    task.save(model, tokenization.load(str(tmp_path / "out")), tmp_path / "head")
    config = json.loads((tmp_path / "head" / "config.json").read_text()) | more
    (tmp_path / "head" / "config.json").write_text(json.dumps(config))
    record = manifest.read(ready / "sft") | {"family": "classifier", "config": {"task_options": {}}}
    text = card.write(card.Subject(str(tmp_path / "head"), "t", [leaks.clean(record)], {}, config))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], {})
    assert said.getvalue().strip() == wanted


@pytest.mark.parametrize(
    ("source", "name"),
    [("mlm", "classification"), ("mlm", "question_answering"), ("mlm", "similarity"), ("denoising", "classification"),
     ("span_corruption", "sequence_to_sequence")],
)  # fmt: skip
def test_an_adapter_of_any_family_goes_on_its_base_by_the_auto_class(parents, tmp_path, source, name):
    import torch

    from pipeline import tasks
    from pipeline.hub import readback
    from pipeline.models import tokenization
    from pipeline.training.strategies import chosen
    from tests.test_tasks import ROWS

    task = tasks.load(name, {"stride": 4} if name == "question_answering" else {})
    model = chosen("lora", task.load_model(str(parents[source]), task.labels(ROWS[name])), 1, 4, 8, [])
    for weights in model.parameters():
        if weights.requires_grad:
            torch.nn.init.normal_(weights, std=0.1)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    task.save(model.merge_and_unload(), tokenization.load(str(parents[source])), tmp_path)
    assert readback.adapts(Path(parents[source]), tmp_path / "adapter", tmp_path, task.auto) == []
    assert readback._behaves(tmp_path, tmp_path, task.auto) == []
    other = task.load_model(str(parents[source]), task.labels(ROWS[name]))
    torch.nn.init.normal_(next(other.parameters()))
    other.save_pretrained(tmp_path / "base")
    assert readback.adapts(tmp_path / "base", tmp_path / "adapter", tmp_path, task.auto)


def test_figures_of_the_index_are_those_measured(ready):
    summary = manifest.read(ready, "evaluate.json")
    results = ModelCard(card.write(subject(ready, "sft"))).data.eval_results
    found = {result.metric_type: result.metric_value for result in results}
    figures = summary["nodes"]["sft"]["figures"]
    assert found == {metric: round(of["sft"]["value"], 4) for metric, of in figures.items() if "sft" in of}
    assert all("95% interval" in result.metric_name for result in results)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_every_number_of_the_table_is_that_of_the_evaluation(ready, stage):
    """Each cell by itself: figures no two of which are alike, found under their own heading in their own row."""
    made = subject(ready, stage)
    block = made.block.found
    number, wanted = iter(range(1, 10_000)), {}
    for metric, found in block["figures"].items():
        share = block["metrics"][metric]["unit"] == "share"
        for label in found:
            value = next(number) / 1000
            found[label] = {"value": value, "low": value, "high": value, "n": 40}
            wanted[metric, label] = f"{100 * value:.1f}% [{100 * value:.1f}" if share else f"{value:.3f} [{value:.3f}"
    for one in block["comparisons"]:
        one |= {"value": (value := next(number) / 1000), "low": value, "high": value, "n": 40}
    text = card.write(made)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    headings = next(cells for cells in lines if cells[0] == "" and any(cell.startswith(stage) for cell in cells))
    labels = [heading.partition(" (")[0] for heading in headings]
    rows = {cells[0]: cells for cells in lines[lines.index(headings) :]}
    assert wanted
    for (metric, label), told in wanted.items():
        assert rows[metric][labels.index(label)].startswith(told), (metric, label)
    for metric, found in block["figures"].items():  # what was not measured is empty
        assert all(not rows[metric][labels.index(label)] for label in block["models"] if label not in found)
    for one in block["comparisons"]:
        scale, digits = (100, 1) if block["metrics"][one["metric"]]["unit"] == "share" else (1, 3)
        assert f"- {one['metric']} against {one['against']}: {scale * one['value']:+.{digits}f}" in text


def test_the_card_tells_what_the_records_say(ready):
    edit(ready / "sft" / "manifest.json", lambda record: record["recipe"].update(dropped={"longer than 64 tokens": 1234}))
    text = card.write(subject(ready, "dpo"))
    summary, records = (
        manifest.read(ready, "evaluate.json"),
        [manifest.read(ready / stage) for stage in ("pretrain", "sft", "dpo")],
    )
    for record in records:
        assert record["outputs"][:12] in text
        assert f"{record['tokens']:,}" in text
    assert "1,234 longer than 64 tokens" in text
    assert "c" * 40 in text
    assert summary["samples"][0]["prompt"] in text
    block = blocks.of(records[-1], summary)
    for metric in block.found["figures"]:
        assert f"| {metric} | " in text
        assert block.cell(metric, "dpo") in text
    assert block.difference(block.primary) in text
    power = 10 * records[-1]["hardware"]["cores"]
    assert f"{records[-1]['seconds'] * power / 3600:.2f} Wh at {power} W" in text
    assert "an assumed power" in text
    assert "[me/x-sft](/me/x-sft/tree/t1)" in text


def test_the_assumed_power_can_be_given(ready):
    assert "Wh at 300 W" in card.write(subject(ready, "sft", watts=300.0))
    assert sections.power({"cores": 8, "accelerators": ["a", "b"]}, 0) == 8 * 10 + 2 * 400


def test_an_unevaluated_node_says_so(ready):
    text = card.write(subject(ready, "sft", block=None, samples=()))
    assert "These weights were not evaluated." in text
    assert "model-index" not in text
    assert checked(text) == []


def test_an_answer_cannot_break_out_of_its_block(ready):
    summary = manifest.read(ready, "evaluate.json")
    summary["samples"][0]["answers"]["sft"] = "a ``` b ````` <script>"
    text = card.write(subject(ready, "sft", samples=summary["samples"]))
    fence = re.search(r"^(`{3,})text$", text, flags=re.MULTILINE)[1]
    block = text.split(f"{fence}text\n")[1].split(f"\n{fence}\n")[0]
    assert "<script>" in block
    assert f"\n{fence}" not in block


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_the_code_on_the_card_runs(run, ready, hub, tmp_path, stage):
    from huggingface_hub import HfApi

    assert push(run, ready, "--adapter", "yes")[0] == 0
    name = {"pretrain": "me/small-pretrain", "sft": "me/small-sft"}[stage]
    text = head(hub, name)["README.md"].data.decode()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks[0].strip().splitlines()) == 4
    api = HfApi(endpoint=hub.url)
    assert all('revision="tristage-' in call for call in re.findall(r"from_pretrained\(\"me[^)]*\)", "".join(blocks)))
    assert len(blocks) == (2 if stage == "sft" else 1)
    assert all(f'"{tag}"' in "".join(blocks) for tag in hub.repos["model", name].tags)  # also that of the adapter
    for repo in ("me/small-pretrain", "me/small-sft"):  # the endpoint was read when the library was imported: a folder instead
        where = api.snapshot_download(repo, cache_dir=tmp_path / "cache")
        blocks = [block.replace(f'"{repo}"', f'"{where}"') for block in blocks]
    scope, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        for block in blocks:
            exec(block, scope)
    assert (type(scope["model"]).__name__ == "PeftModelForCausalLM") is (stage == "sft")
    shown = re.search(rf"^  {stage} +(.*)$", text.split("answered by each model")[1], flags=re.MULTILINE)[1]
    assert len(shown) > 5
    assert " ".join(said.getvalue().split()).startswith(shown.rstrip("…")), "a visitor gets the answer that the card shows"


def test_an_adopted_model_has_a_card_and_no_figures(run, ready, hub, tmp_path):
    assert run("adopt", "--model", ready / "sft", "--output", tmp_path / "other" / "theirs")[0] == 0
    status, _, err = run("push", "--hub", "me/own", "--runs", tmp_path / "other", "--node", "theirs", "--force", "yes")
    assert status == 0, err
    text = head(hub, "me/own")["README.md"].data.decode()
    assert finished.read(tmp_path / "other" / "theirs").stage.about in text
    assert "not evaluated" in text
    assert "not taught" not in text
    assert "The figures above" not in text
    assert checked(text) == []
    assert "loss.svg" not in head(hub, "me/own")


def test_a_parent_of_the_same_name_elsewhere_is_not_linked(run, ready, hub, tmp_path):
    """The last node was made from another parent than the one beside it, which is pushed under that parent's name."""
    from tests.conftest import flags_of

    foreign = tmp_path / "foreign"
    data = manifest.read(ready / "sft")["recipe"]["data"]
    assert run("sft", *flags_of("sft", ready, Path(data).parent, foreign / "sft"), "--seed", "7")[0] == 0
    given = ["--parent", foreign / "sft", *flags_of("dpo", ready, Path(data).parent, tmp_path / "dpo")[2:]]
    assert run("dpo", *given)[0] == 0
    shutil.rmtree(ready / "dpo")
    (tmp_path / "dpo").rename(ready / "dpo")
    assert push(run, ready, "--node", "sft", "--force", "yes")[0] == 0
    status, out, err = push(run, ready, "--node", "dpo", "--force", "yes")
    assert status == 0, err
    assert "me/small-dpo: its parent is not on the hub; the card links to none" in out
    assert "base_model" not in head(hub, "me/small-dpo")["README.md"].data.decode()


def test_parents_of_every_role_are_told(ready):
    """A policy with a reward model and pairs that another node made: links and the command name all of them."""
    rows = {"role": "data", "node": "pairs", "path": "/x/pairs", "outputs": "p" * 64, "beside": True}
    reward = {"role": "reward", "path": "/x/reward", "hub": "their/reward", "beside": False}
    edit(ready / "dpo" / "manifest.json", lambda record: record["parents"].extend([reward, rows]))
    text = card.write(subject(ready, "dpo"))
    assert ModelCard(text).data.base_model == "me/x-sft", "only what gave the weights"
    assert "The chain begins with `their/reward`, `pppppppppppp`." in text
    assert "--parent PARENT --reward REWARD --data DATA --output" in text
    assert "`REWARD` being `their/reward`, `DATA` being a folder with pairs of outputs `pppppppppppp`" in text


def test_the_same_node_has_the_same_card(ready):
    assert card.write(subject(ready, "dpo")) == card.write(subject(ready, "dpo"))


def test_the_curve_goes_through_the_points():
    log = [{"tokens": 100, "loss": 4.0}, {"tokens": 200, "loss": 2.0}, {"tokens": 400, "loss": 1.0}]
    picture = curve.draw(log, "sft", {"floor": 0.5})
    points = [tuple(map(float, point.split())) for point in re.search(r'class="k0" d="M([^"]+)"', picture)[1].split("L")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, abs=0.01)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(1.5, abs=0.01)
    assert y0 < y1 < y2, "down the page is less"
    assert "floor: 0.500" in picture
    marks = re.findall(r'text-anchor="(?:end|middle)">([\d.]+)<', picture)
    assert {"0", "2", "4", "100", "200", "300", "400"} <= set(marks), "ticks are round"
    ElementTree.fromstring(picture)


@pytest.mark.parametrize(
    "wrong", ["license: [", "license: My Own", "language: English", "base_model_relation: child", "base_model: a/b/c"]
)
def test_the_test_hub_refuses_broken_metadata(wrong):
    assert checked(f"---\nlicense: mit\n{wrong}\n---\nx".replace("license: mit\nlicense", "license"))

"""A model that sees is measured: beside its parent, beside shuffled pictures, and on the page."""

import json
import re
import shutil
from types import SimpleNamespace

from pipeline.chain import manifest
from pipeline.data import recipe, types
from pipeline.evaluation.metrics.reply_loss import EVALUATOR, shuffled
from pipeline.evaluation.subject import StageModel
from tests.images import looked_at
from tests.vision_language import PATCHES, flags_of_kto, flags_of_rlhf, reply, rows_of, said


def test_rated_answers_and_rewards_are_measured_with_pictures_beside_the_parent(run, made, picture_data, tmp_path):
    runs = tmp_path / "runs"
    for name in ("pretrain", "sft"):
        shutil.copytree(made / name, runs / name)
    for name, kind, given in (("kto", "feedback", flags_of_kto), ("rlhf", "prompts", flags_of_rlhf)):
        words = list(map(str, given(runs, picture_data, "--max_steps", "1")))
        at = words.index("--data")
        recipe_ = tmp_path / f"{kind}.yaml"
        recipe_.write_text(f"type: {kind}\nheld_out: 0.5\nsources:\n  - files: {words[at + 1]}\n")
        status, _, err = run(name, *words[:at], "--recipe", recipe_, *words[at + 2 :])
        assert status == 0, err
    status, _, err = run("evaluate", "--runs", runs, "--resamples", "50", "--max_new_tokens", "4")
    assert status == 0, err
    nodes = json.loads((runs / "evaluate.json").read_text())["nodes"]
    wanted = {"kto": ("auc", "loss", "bits_per_byte"), "rlhf": ("sampled_reward", "ended")}
    for name, metrics in wanted.items():
        for metric in metrics:
            assert {name, "sft"} <= nodes[name]["figures"][metric].keys()
        assert "kl_to_parent" in nodes[name]["figures"]


def test_shuffled_pictures_are_those_of_another_row(picture_data):
    rows = rows_of(picture_data)[:5]
    mixed = [*rows, {"messages": [said("Hi"), reply("Ho")]}, rows[0] | {"images": rows[0]["images"][:1]}]
    found = shuffled(mixed)
    assert [row["messages"] for row in found] == [row["messages"] for row in mixed]
    assert [row["images"] for row in found[:5]] == [row["images"] for row in [*rows[1:], rows[0]]]
    assert found[5:] == mixed[5:]  # texts, and what can be exchanged with no other, stay
    assert shuffled([rows[0], rows[0]]) == []
    twice = [row for row in rows for _ in range(3)]  # several rows about a picture, one after another
    assert [row["images"] for row in shuffled(twice)] == [row["images"] for row in found[:5] for _ in range(3)]


def test_a_model_that_does_not_look_loses_nothing_by_other_pictures(made, picture_data):
    """One that looks does: a projector that says the same of whatever patch makes the difference zero."""
    node = StageModel(str(made / "sft"), "sft")
    subject = SimpleNamespace(rows=rows_of(picture_data), chatting=[node], node=node, add_model=lambda *_: None)

    def apart():
        own, other = (one.figure.items[:, 0] for one in EVALUATOR.measure(subject) if one.metric == "loss")
        return abs(other - own).max()

    assert apart() > 1e-3
    node.model.model.multi_modal_projector.linear_2.weight.data.zero_()
    assert apart() < 1e-5


def test_the_loss_is_shown_beside_that_of_shuffled_pictures(run, made, tmp_path):
    shutil.copytree(made / "pretrain", tmp_path / "runs" / "pretrain")
    shutil.copytree(made / "sft", tmp_path / "runs" / "sft")
    status, out, err = run("evaluate", "--runs", tmp_path / "runs", "--resamples", "50", "--max_new_tokens", "4")
    assert status == 0, err
    assert "sft, shown the pictures of other rows" in out
    assert "against shuffled pictures (baseline)" in out


def test_the_report_shows_what_is_asked_about(run, made, picture_data, tmp_path):
    for name in ("pretrain", "sft", "dpo"):
        shutil.copytree(made / name, tmp_path / "runs" / name)
    status, _, err = run("evaluate", "--runs", tmp_path / "runs", "--resamples", "50", "--max_new_tokens", "4")
    assert status == 0, err
    assert run("report", "--runs", tmp_path / "runs")[0] == 0
    page = (tmp_path / "runs" / "report.html").read_text()
    samples = json.loads((tmp_path / "runs" / "evaluate.json").read_text())["samples"]
    held_out = (
        recipe.of(manifest.read(tmp_path / "runs" / "sft"))
        .rows("messages", "held_out", manifest.read(made / "sft")["seed"])
        .kept
    )
    asked = [sample for sample in samples if "row" in sample]
    assert asked
    answers = page.split('id="answers"')[1].split("<section", 1)[0]
    for sample in asked:
        assert set(sample["answers"]) == {"pretrain", "sft", "dpo"}
        urls = types.load("messages").thumbnails(held_out[sample["row"]["number"]])
        assert len(urls) == 2
        assert all(f'<img src="{url}" alt="what is asked about">' in answers for url in urls)
        assert looked_at(urls[0]).shape == (20, 20, 3)
    tags = re.findall("<img [^>]*>", page)
    assert all(re.fullmatch(r'<img src="data:image/png;base64,[\w+/=]+" alt="[^"]+">', tag) for tag in tags), (
        "within the page, and told"
    )
    masks = page.split('id="masks"')[1]
    for name in ("sft", "dpo"):
        batch = masks.split(f">{name}</h3>")[1].split("<h3")[0]
        for line in re.split("<div><h4>", batch)[1:]:
            places = line.count("<b>&lt;image&gt;</b>") // PATCHES
            assert line.count("<img ") == (0 if "rejected</h4>" in line else places), line[:60]
        assert "<img " in batch

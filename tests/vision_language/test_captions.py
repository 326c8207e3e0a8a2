"""Captions: what a model that sees writes of pictures, beside its rivals, and for pictures that nobody captioned."""

import base64
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("rouge_score", reason="rouge-score is not installed: make setup-data")

from pipeline.evaluation.metrics.reply_loss import SHUFFLED
from pipeline.evaluation.subject import StageModel
from pipeline.training.captions import FREQUENT, Captions, is_caption
from tests.conftest import last, make_quietly
from tests.vision_language import COLOURS, cell, flags, lines, place, png, reply, said, speaks_of_colours

NAMES = list(COLOURS)


def row(colour, mark, text=None):
    picture = cell(png(colour, mark=mark)) | {"hash": f"{colour} {mark}"}
    return {"messages": [said(place()), reply(text or f"It is {colour}.")], "images": [picture]}


class Reads:
    """A model that reads the colour of a picture off its hash, and knows all but black."""

    family, sees, chats, label = "vision_language", True, True, "node"

    def replies(self, turns, longest):
        colours = [turn[0]["content"][0]["image"]["hash"].split()[0] for turn in turns]
        return [f"It is {colour}." if colour != "black" else "It is no colour." for colour in colours]


def test_captions_are_held_against_those_of_other_pictures_and_the_most_frequent_one():
    rows = [row(colour, 0) for colour in NAMES] + [{"messages": [said("Hi"), reply("It is red.")]}]
    training = [row("green", 1), row("green", 2), row("red", 3), {"messages": [said(place(), "Which?"), reply("It is red.")]}]
    models, skipped = {}, {}
    subject = SimpleNamespace(
        rows=rows, node=Reads(), chatting=[Reads(), SimpleNamespace(label="parent", sees=False)], settings=SimpleNamespace(max_new_tokens=8),
        training=lambda: training, add_model=lambda label, role, asked: models.update({label: asked}), skipped=skipped,
    )  # fmt: skip
    found = {(one.model, one.metric): one.figure.of(one.figure.items.sum(0)) for one in Captions().measure(subject)}
    assert {model for model, _ in found} == {"node", SHUFFLED, FREQUENT}
    assert found["node", "caption_match"] == 3 / 4
    assert found[SHUFFLED, "caption_match"] == 0
    assert found[FREQUENT, "caption_match"] == 1 / 4  # green
    # three of three words, and for black two of three that are right of four that are said: F1 is 4/7
    assert found["node", "caption_rouge_l"] == pytest.approx((3 + 4 / 7) / 4)
    assert found[FREQUENT, "caption_rouge_l"] == pytest.approx((1 + 3 * 2 / 3) / 4)
    assert models[SHUFFLED] == "node, shown the pictures of other rows"


def test_a_question_about_a_picture_asks_for_no_caption():
    assert is_caption(row("red", 1))
    assert not is_caption({"messages": [said(place(), "Which?"), reply("It is red.")]})
    assert not is_caption({"messages": [said("Hi"), reply("Ho")]})
    assert not is_caption({"messages": [*row("red", 1)["messages"], said("And?"), reply("That is all.")]})


def test_an_sft_on_captions_is_measured_and_captions_new_pictures(tmp_path):
    """From rows with `image` and `caption` on: trained, measured beside its rivals, and asked for a folder of pictures."""
    captions = [
        {"group": str(n), "image": cell(png(NAMES[n % 4], mark=n)), "caption": f"It is {NAMES[n % 4]}."} for n in range(120)
    ]
    runs, data = tmp_path / "runs", lines(tmp_path / "captions.jsonl", captions)
    speaks_of_colours(tmp_path)
    more = ["--method", "full", "--learning_rate", "1e-2", "--max_steps", "60", "--per_device_train_batch_size", "8"]
    given = flags(tmp_path, tmp_path, *more, "--data", data, "--output", runs / "sft")
    make_quietly("sft", *last(given))
    make_quietly("evaluate", "--runs", runs, "--resamples", "50", "--max_new_tokens", "12")
    figures = json.loads((runs / "evaluate.json").read_text())["nodes"]["sft"]["figures"]
    assert set(figures["caption_match"]) == {"sft", SHUFFLED, FREQUENT}
    assert figures["caption_match"]["sft"]["value"] > figures["caption_match"][SHUFFLED]["value"]
    assert figures["loss"]["sft"]["value"] < figures["loss"][SHUFFLED]["value"]
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in NAMES:
        (photos / f"{name}.png").write_bytes(png(name, mark=7))
    make_quietly("predict", "--runs", runs, "--node", "sft", "--data", photos, "--output", tmp_path / "said.jsonl")
    found = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    model = StageModel(str(runs / "sft"), "sft")
    for one in found:
        shown = {"bytes": base64.b64encode((photos / one["origin"].rpartition("/")[2]).read_bytes()).decode()}
        turns = [{"role": "user", "content": [{"type": "image", "image": shown}]}]
        assert one["said"]["text"] == model.replies([turns], 64)[0]
        assert "bytes" not in one["row"]["image"]
    assert len(found) == len(NAMES)

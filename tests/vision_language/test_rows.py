"""Pictures in conversations and pairs: what data sets write, what is dropped, refused, held out and doubted."""

import base64

import pytest

from pipeline.data import doubts, recipe, types
from pipeline.data.types import Malformed, recognise
from pipeline.models import parts
from pipeline.system.errors import UserError
from tests.vision_language import BLUE, COLOURS, RED, lines, place, png, reply, said


def converted(row, kind="messages"):
    found = recognise(row, kind, "f:1").convert(row)
    return found, types.load(kind).fault(found)


@pytest.mark.parametrize(
    ("row", "content", "count"),
    [
        ({"messages": [said(place(), "Hi", place()), reply("Ho")], "images": [RED, BLUE]}, [place(), {"type": "text", "text": "Hi"}, place()], 2),
        ({"messages": [said("Hi", {"type": "image", "image": RED}), reply("Ho")]}, [{"type": "text", "text": "Hi"}, place()], 1),
        ({"messages": [said({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{RED['bytes']}"}}), reply("Ho")]}, [place()], 1),
        ({"conversations": [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Ho"}], "image": RED}, [place(), {"type": "text", "text": "\nHi"}], 1),
        ({"prompt": "Hi <image>", "completion": "Ho", "image": png("red")}, [{"type": "text", "text": "Hi "}, place()], 1),
        ({"image": RED, "caption": "Ho"}, [place()], 1),
    ],
)  # fmt: skip
def test_pictures_stand_in_conversations_as_data_sets_write_them(row, content, count):
    found, fault = converted(row)
    assert fault is None
    assert found["messages"] == [{"role": "user", "content": content}, reply("Ho")]
    assert [set(one) for one in found["images"]] == [{"bytes", "path", "hash"}] * count
    assert converted(found) == (found, None)  # what was kept is read again


def test_the_order_of_pictures_is_that_of_their_places():
    """A picture in a part and those of the column, in one conversation: each lies where its place stands."""
    inline = {"type": "image", "image": {"bytes": png("green")}}
    turns = [said(place()), reply("A"), said(inline, "and", place()), reply("B")]
    found, fault = converted({"messages": turns, "images": [{"bytes": png("red")}, {"bytes": png("blue")}]})
    assert fault is None
    wanted = [base64.b64encode(png(colour)).decode() for colour in ("red", "green", "blue")]
    assert [one["bytes"] for one in found["images"]] == wanted
    filled = parts.filled(found["messages"], found["images"])
    assert [one["bytes"] for one in parts.pictures(filled[2:])] == wanted[1:]
    assert parts.bare(filled) == found["messages"]
    assert parts.texts_alone(filled)[2]["content"] == "and"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [said(place(), place(), "Hi"), reply("Ho")], "images": [RED]}, "image tag without an image"),
        ({"messages": [said(place(), "Hi"), reply("Ho")]}, "image tag without an image"),
        ({"conversations": [{"from": "human", "value": "<image> Hi"}, {"from": "gpt", "value": "Ho"}], "image": None}, "image tag without an image"),
        ({"messages": [said(place(), "Hi"), reply("Ho")], "images": [RED, BLUE]}, "image without an image tag"),
        ({"messages": [said(place(), "Hi"), reply("Ho")], "images": [{"bytes": png("red", (1, 1))}]}, "image of a single pixel"),
        ({"messages": [said(place(), "Hi"), reply("Ho")], "images": [{"bytes": png("red")[:-40]}]}, "broken or truncated image"),
        ({"messages": [said("Hi"), {"role": "assistant", "content": [place(), {"type": "text", "text": "Ho"}]}], "images": [RED]}, "image in an answer"),
        ({"image": RED, "caption": " "}, "no assistant text"),
    ],
)  # fmt: skip
def test_what_can_not_be_shown_is_a_counted_drop(row, fault):
    assert converted(row)[1] == fault


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [said("Hi"), reply("Ho")], "images": [RED]}, "images is what the text is about, but no text says where it stands"),
        ({"messages": [said({"type": "image_url", "image_url": {"url": "http://a.b/c.png"}}), reply("Ho")]}, "image: http://a.b/c.png can't be read here"),
        ({"messages": [said({"type": "video", "video": "a.mp4"}), reply("Ho")]}, "a part of type video; text alone is read"),
    ],
)  # fmt: skip
def test_what_is_the_users_fault_is_refused(row, fault):
    with pytest.raises(Malformed, match=fault):
        converted(row)


def test_texts_are_read_as_before():
    row = {"messages": [{"role": "user", "content": "What is <image>?"}, reply("Ho")]}
    assert converted(row) == (row, None)
    assert converted({**row, "images": []})[1] == "image tag without an image"
    plain = {"messages": [{"role": "user", "content": "Hi"}, reply("Ho")]}
    assert converted({**plain, "images": []}) == (plain, None)


def test_pictures_lie_beside_their_table_and_hold_rows_together(tmp_path):
    """A question about a picture is held out with all others about it; what looks the same is not trained on."""
    for number, colour in enumerate(COLOURS):
        (tmp_path / f"{number}.png").write_bytes(png(colour))
    asked = [f"{word}?" for word in ("Which", "What", "Is it", "Who", "How")]
    rows = [
        {"image": f"{number}.png", "conversations": [{"from": "human", "value": f"<image>{one}"}, {"from": "gpt", "value": "Ho"}]}
        for number in range(4) for one in asked
    ]  # fmt: skip
    lines(tmp_path / "rows.jsonl", [*rows, rows[0] | {"image": "gone.png"}])
    own = tmp_path / "own.yaml"
    own.write_text(f"type: messages\nheld_out: 0.4\nsources:\n  - files: {tmp_path}/rows.jsonl\n")
    found = [recipe.load(str(own)).rows("messages", split, 1) for split in ("train", "held_out")]
    sides = [{row["images"][0]["hash"] for row in one.kept} for one in found]
    assert not sides[0] & sides[1]
    assert [len(one.kept) for one in found] == [5 * len(side) for side in sides]
    assert all(sides)
    assert found[0].dropped["image file that is not there"] == 1
    with pytest.raises(UserError, match="lies outside of"):
        recipe.from_data(str(lines(tmp_path / "out.jsonl", [rows[0] | {"image": "../a.png"}])), "messages").rows(
            "messages", "train", 1
        )


def test_pairs_about_other_pictures_do_not_contradict_each_other(picture_data):
    rows = recipe.from_data(str(picture_data / "pairs.jsonl"), "preference").rows("preference", "train", 1).kept
    other = rows[0] | {"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
    kind = types.load("preference")
    assert kind.doubts([rows[0], other])[0].rows == 2
    assert kind.doubts([rows[0], other | {"images": rows[1]["images"]}])[0].rows == 0


def test_one_picture_for_all_rows_is_told_by_what_it_looks_like(picture_data):
    rows = recipe.from_data(str(picture_data / "chats.jsonl"), "messages").rows("messages", "train", 1).kept
    kind = types.load("messages")
    given = [row for row in rows if row.get("images")]
    assert kind.doubts(given)[0].rows < len(given)
    alike = [row | {"images": given[0]["images"]} for row in given]
    told = doubts.of(alike * 2, kind)
    assert any("have the same picture" in line for line in told), told

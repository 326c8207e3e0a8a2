"""Streams of pictures: every kind of source, what is dropped and held out, and a stage that is killed while it reads one."""

import io
import itertools
import json
import os
import tarfile

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.chain import manifest
from pipeline.data import ranges, recipe, stream
from pipeline.data.reading import NEAR
from pipeline.data.stream import Place
from pipeline.system.errors import UserError
from tests.conftest import killed_in_a_stream
from tests.images import drawn, nearly, saved

COUNT, SIDES = 60, ("even", "odd")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stream, "CHUNK", 4000)  # ten pictures
    monkeypatch.setattr(ranges, "NEAR", 2000)


def picture(number):
    return saved(drawn(number, side=16))


def folder(path):
    for number in range(COUNT):
        (path / SIDES[number % 2]).mkdir(parents=True, exist_ok=True)
        (path / SIDES[number % 2] / f"{number}.png").write_bytes(picture(number))
    return path


def table(path):
    folder(path)
    lines = [{"file_name": f"{SIDES[number % 2]}/{number}.png", "text": f"picture {number}"} for number in range(COUNT)]
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def archive(path, mode="w"):
    path.mkdir()
    with tarfile.open(path / f"a.tar{'.gz' if mode == 'w:gz' else ''}", mode, format=tarfile.PAX_FORMAT) as made:
        above = tarfile.TarInfo("part")
        above.type = tarfile.DIRTYPE
        made.addfile(above)
        for number in range(COUNT):
            name = f"part/{number}" + "-of-a-long-name" * (10 * (number % 7 == 0))  # which stands in a head of its own
            for ending, content in (("png", picture(number)), ("txt", f"picture {number}".encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))
    return path


def packed(path):
    return archive(path, "w:gz")


def groups(path):
    path.mkdir()
    rows = [
        {"image": {"bytes": picture(number), "path": f"{number}.png"}, "text": f"picture {number}"} for number in range(COUNT)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path / "a.parquet", row_group_size=25)
    return path


def written(path, type, streams=True, more="", **pools):
    """Write a recipe of a folder, or of several with a share each."""
    sources = "".join(f"  - files: {place}\n    {said}\n" for place, said in (pools or {str(path): "weight: 1"}).items())
    name = path.parent / f"{'streamed' if streams else 'whole'}.yaml"
    name.write_text(f"type: {type}\n{'stream: yes' if streams else ''}\n{more}\nsources:\n{sources}")
    return str(name)


def epoch(rows, number=0, process=0, processes=1):
    """Return the rows of an epoch, what was counted in it, and the places where its chunks begin."""
    at, found, dropped, places = Place(number), [], [], []
    while at.epoch == number:
        places.append(at)
        chunk = rows.stream.chunk(0, at, process, processes)
        found += chunk.rows.kept
        dropped.append(chunk.rows.dropped)
        at = chunk.next
    return found, sum(dropped, start=type(rows.dropped)()), places


def content(rows):
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


SOURCES = [(folder, "images"), (table, "image_text"), (archive, "image_text"), (packed, "image_text"), (groups, "image_text")]


@pytest.mark.parametrize(("make", "type"), SOURCES)
def test_an_epoch_has_the_rows_of_a_whole_recipe_once_and_in_another_order_each_time(tmp_path, make, type):
    path = make(tmp_path / "data")
    whole = recipe.load(written(path, type, streams=False))
    given = recipe.load(written(path, type))
    rows, held_out = (given.rows(type, split, 1) for split in recipe.SPLITS)
    found, dropped, places = epoch(rows)
    assert content(found) == content(whole.rows(type, "train", 1).kept) == content(rows.kept)
    assert content(held_out.kept) == content(whole.rows(type, "held_out", 1).kept)
    assert 0 < len(held_out.kept) < COUNT / 4
    assert not dropped
    assert len(places) > 4
    again = epoch(rows, 1)[0]
    assert again != found
    assert content(again) == content(found)
    middle = places[len(places) // 2]
    chunks = [recipe.load(written(path, type)).rows(type, "train", 1).stream.chunk(0, middle) for _ in range(2)]
    assert chunks[0].rows.kept == chunks[1].rows.kept == rows.stream.chunk(0, middle).rows.kept


@pytest.mark.parametrize(("make", "type"), [(folder, "images"), (archive, "image_text")])
def test_processes_read_disjoint_parts_that_are_the_whole_together(tmp_path, make, type):
    rows = recipe.load(written(make(tmp_path / "data"), type)).rows(type, "train", 1)
    shares = [epoch(rows, 0, process, 2)[0] for process in range(2)]
    assert all(shares)
    assert content([row for share in shares for row in share]) == content(epoch(rows)[0])


def test_parts_of_an_archive_are_whole_rows_and_all_of_it(tmp_path):
    path = archive(tmp_path / "data") / "a.tar"
    file = ranges.File.on_disk(path)
    cuts = ranges.parts(file, ranges.NEAR)
    assert len(cuts) > 10
    assert cuts[-1][1] == file.size
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(cuts))
    raw = [one for start, stop in cuts for one in ranges.read(file, start, stop, 0, None, None)]
    assert [row["text"] for _, row in raw] == [f"picture {number}" for number in range(COUNT)]
    assert [row["image"]["bytes"] for _, row in raw] == [picture(number) for number in range(COUNT)]


def test_what_can_not_be_shown_is_a_counted_drop_and_a_picture_like_a_held_out_one_too(tmp_path):
    path = folder(tmp_path / "data")
    (path / "odd" / "broken.png").write_bytes(picture(1)[:60])
    (path / "odd" / "text.png").write_bytes(b"this is no picture")
    held_out = recipe.load(written(path, "images")).rows("images", "held_out", 1).kept
    for number, row in enumerate(held_out):
        (path / "even" / f"near{number}.png").write_bytes(nearly(row["image"]))
    given = recipe.load(written(path, "images"))
    rows, again = (given.rows("images", split, 1) for split in recipe.SPLITS)
    own = len(again.kept) - len(held_out)  # held out by their own hash
    assert own < len(held_out)
    found, dropped, _ = epoch(rows)
    assert dropped == {
        "broken or truncated image": 1, "not an image of a kind that is read": 1, NEAR: len(held_out) - own,
    } == rows.dropped  # fmt: skip
    assert content(found) == content(rows.kept)
    assert not any("near" in row["image"]["path"] for row in found)
    assert f"{path}/odd/broken.png: dropped: broken or truncated image" in rows.notes


def test_named_folders_are_held_out(tmp_path):
    for split in ("train", "test"):
        folder(tmp_path / "data" / split)
    for number in range(0, COUNT, 2):
        (tmp_path / "data" / "test" / "even" / f"{number}.png").unlink()
    given = recipe.load(written(tmp_path / "data", "images"))
    rows, held_out = (given.rows("images", split, 1) for split in recipe.SPLITS)
    assert {row["label"] for row in held_out.kept} == {"odd"}
    assert {row["label"] for row in epoch(rows)[0]} == {"even"}


PRETRAIN = [
    "--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--max_steps", "12", "--save_steps", "4",
    "--logging_steps", "2", "--per_device_train_batch_size", "4", "--lr_scheduler_type", "constant",
]  # fmt: skip
SIZED = "{image_size: 16, patch_size: 8}"
RUNS = {
    "simclr": ["--objective", "simclr", "--objective_options", SIZED],
    "clip": ["--objective", "clip", "--objective_options", SIZED, "--vocab_size", "300", "--max_length", "32"],
    "workers": ["--objective", "simclr", "--objective_options", SIZED, "--dataloader_num_workers", "1"],
}


KILLED = [("simclr", folder, "images"), ("clip", archive, "image_text"), ("workers", groups, "images")]


@pytest.mark.parametrize(("name", "make", "type"), [*KILLED[:2], pytest.param(*KILLED[2], marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_weights_log_and_record(run, tmp_path, name, make, type):
    given = ["--recipe", written(make(tmp_path / "data"), type), *PRETRAIN, *RUNS[name]]
    said, record = killed_in_a_stream(run, given, tmp_path)
    assert "streamed; of a sample of 60 rows" in said
    assert record["recipe"]["kept"] > 48


def test_shares_of_pictures_without_texts_are_counted_in_pictures(run, tmp_path):
    one, other = (folder(tmp_path / "data") / name for name in SIDES)
    given = [
        "--recipe",
        written(tmp_path / "data", "images", **{str(one): "share: 0.75", str(other): "share: 0.25"}),
        *PRETRAIN,
    ]
    status, _, err = run("pretrain", *given, *RUNS["simclr"], "--output", tmp_path / "out")
    assert status == 0, err
    found = manifest.read(tmp_path / "out")["recipe"]["mixture"]
    assert [item["tokens"] for item in found] == [36, 12]


@pytest.mark.parametrize("make", [folder, table])
def test_a_picture_that_changes_while_it_is_read_ends_the_run(run, tmp_path, monkeypatch, make):
    from pipeline.training.keeper import Keeper

    path = make(tmp_path / "data")
    ended = Keeper.on_step_end

    def changing(self, args, state, control, **more):
        if state.global_step == 11:
            os.utime(path / "odd" / "1.png", ns=(1, 1))
        return ended(self, args, state, control, **more)

    monkeypatch.setattr(Keeper, "on_step_end", changing)
    type = "images" if make is folder else "image_text"
    given = ["--recipe", written(path, type), *PRETRAIN, *RUNS["simclr" if make is folder else "clip"]]
    status, _, err = run("pretrain", *given, "--output", tmp_path / "out")
    assert (status, "was changed while it was read" in err) == (2, True), err


def test_a_broken_archive_and_one_without_rows_are_one_line(tmp_path):
    path = archive(tmp_path / "data")
    whole = (path / "a.tar").read_bytes()
    (path / "a.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(UserError, match=r"a\.tar: can't be read") as error:
        epoch(recipe.load(written(path, "image_text")).rows("image_text", "train", 1))
    assert "\n" not in error.value.faults[0]
    with tarfile.open(path / "a.tar", "w"):
        pass
    with pytest.raises(UserError, match=r"a\.tar: is empty; it holds no row"):
        recipe.load(written(path, "image_text")).rows("image_text", "train", 1)

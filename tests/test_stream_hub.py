"""A stream from a hub: known by its revision, read a part at a time, asked again where it fails, and then told in one line."""

import io
import json
import types

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import HfFileSystem

from pipeline.data import hubs, ranges, recipe, stream
from pipeline.system.errors import UserError
from tests.conftest import SMALL, mostly_slow
from tests.hub import File, Repo
from tests.test_stream import epoch, lines, texts

ROWS = r"GET /datasets/me/web/resolve/.*(parquet|jsonl)"  # what asks for a file's bytes


def parquet(found):
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": text} for text in found]), made, row_group_size=20)
    return File(made.getvalue(), True)


@pytest.fixture
def web(hub, tmp_path, monkeypatch):
    """A hub with a data set, which the libraries ask; the recipe that streams it."""
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stream, "CHUNK", 4000)
    monkeypatch.setattr(ranges, "FAR", 2000)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(hubs, "time", types.SimpleNamespace(sleep=lambda seconds: waited.append(seconds)))
    HfFileSystem.clear_instance_cache()
    waited = []
    repo = hub.repos["dataset", "me/web"] = Repo("dataset", "me/web", False)
    repo.commit({"data/train-0.parquet": parquet(texts(0, 150)), "data/train-1.parquet": parquet(texts(150, 300))})
    path = tmp_path / "web.yaml"
    path.write_text("type: text\nstream: yes\nsources:\n  - hub: me/web\n")
    yield types.SimpleNamespace(hub=hub, repo=repo, waited=waited, recipe=str(path))
    HfFileSystem.clear_instance_cache()


def read(given):
    """Return all texts of a recipe, held out or not."""
    rows, held_out = (given.rows("text", split, 1) for split in recipe.SPLITS)
    return sorted([text for text, _ in epoch(rows)[0]] + [row["text"] for row in held_out.kept])


def test_it_is_known_by_its_revision_and_read_at_that(web):
    given = recipe.load(web.recipe)
    before, first = given.digest("text"), web.repo.head
    assert given.contents() == [(f"data/train-{number}.parquet", f"revision {first}") for number in (0, 1)]
    rows = given.rows("text", "train", 1)
    web.repo.commit({"data/train-0.parquet": parquet(texts(500, 520))})
    assert len(epoch(rows)[0]) == len(epoch(given.rows("text", "train", 1))[0]) > 200, "what began at a revision stays there"
    assert given.digest("text") == before != recipe.load(web.recipe).digest("text")
    assert read(recipe.load(web.recipe)) == sorted(texts(500, 520))


def test_lines_of_json_are_read_in_parts(web):
    web.repo.commit({"train.jsonl": File(lines(texts(0, 300)).encode(), False)})
    given = recipe.load(web.recipe)
    assert read(given) == sorted(texts(0, 300))
    assert len(given.rows("text", "train", 1).stream.pools[0]) > 5


@pytest.mark.parametrize("way", mostly_slow([f"{phase} {kind}" for phase in ("listing", "parts", "rows") for kind in ("status", "cut", "lost")],
                                            "listing status", "parts cut", "rows status", "rows lost"))  # fmt: skip
def test_a_hub_that_fails_is_asked_again_and_then_told_in_one_line(web, way):
    phase, kind = way.split()
    given = recipe.load(web.recipe)
    if phase != "listing":
        assert given.contents()
    rows = given.rows("text", "train", 1) if phase == "rows" else None
    whole = epoch(rows)[0] if rows else None

    def act():
        return epoch(rows)[0] if rows else read(given)

    pattern = "tree" if phase == "listing" else ROWS
    HfFileSystem.clear_instance_cache()
    web.hub.fail(pattern, times=10**6, kind=kind)
    with pytest.raises(UserError) as error:
        act()
    assert 5.0 in web.waited, "it was asked again"
    (line,) = error.value.faults
    assert line.startswith("me/web: the hub failed: "), line
    assert line.endswith("; run the same command again, and it goes on")
    assert "\n" not in line
    web.hub.faults[-1].times = 13 if phase == "parts" else 7  # the library asks six times by itself, here for two files at once
    web.waited.clear()
    assert act() == (whole or sorted(texts(0, 300)))
    assert 5.0 in web.waited


def test_a_column_that_changes_its_type_late_is_refused_with_file_and_row(web, tmp_path):
    """Read as a whole `datasets` would make a text of it."""
    late = json.dumps({"text": 5}) + "\n"
    web.repo.commit({"data/train-0.jsonl": File((lines(texts(0, 300)) + late).encode(), False)})
    (tmp_path / "whole.yaml").write_text("type: text\nsources:\n  - hub: me/web\n")
    with pytest.raises(UserError) as error:
        recipe.load(str(tmp_path / "whole.yaml")).rows("text", "train", 1)
    assert error.value.faults == ("me/web/data/train-0.jsonl:301: text is int, not text",)


@pytest.mark.parametrize("kind", ["status", "cut", "lost"])
def test_what_the_hub_s_client_asks_again_is_told_in_our_words(web, capfd, kind):
    web.repo.commit({"train.jsonl": File(lines(texts(0, 300)).encode(), False)})
    HfFileSystem.clear_instance_cache()
    web.hub.fail(ROWS, times=2, kind=kind)
    assert read(recipe.load(web.recipe)) == sorted(texts(0, 300))
    out, err = capfd.readouterr()
    assert out.count("the hub does not answer; asking again in ") == 2
    assert (out + err).count("Retrying") == (out + err).count("thrown while") == 0


@pytest.mark.slow
def test_training_that_a_hub_broke_off_goes_on_to_the_same_weights(web, run, tmp_path, monkeypatch):
    from pipeline.training.keeper import Keeper

    flags = ["--recipe", web.recipe, *SMALL["pretrain"], "--objective", "mlm", "--max_steps", "60", "--save_steps", "10"]
    assert run("pretrain", *flags, "--output", tmp_path / "whole")[0] == 0
    step = Keeper.on_step_end

    def breaks(self, args, state, control, **more):
        if state.global_step == 25:
            web.hub.fail(ROWS, times=10**6)
        return step(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_step_end", breaks)
        status, _, err = run("pretrain", *flags, "--output", tmp_path / "broken")
    said = [line for line in err.splitlines() if line.startswith("pretrain: ")]
    assert (status, len(said)) == (2, 1), err
    assert said[0].startswith("pretrain: me/web: the hub failed: ")
    assert "Traceback" not in err
    web.hub.faults.clear()
    status, out, err = run("pretrain", *flags, "--output", tmp_path / "broken")
    assert status == 0, err
    assert "goes on from checkpoint-" in out
    one, two = (tmp_path / name for name in ("whole", "broken"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    records = [json.loads((folder / "manifest.json").read_text())["recipe"] for folder in (one, two)]
    assert records[0] == records[1]
    assert records[0]["stream"]["known_by"] == "revision"

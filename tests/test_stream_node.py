"""A node that was trained on a stream is a node as any other: evaluated on the held-out side, verified, reported, pushed, explained."""

import json
import shutil

import pytest

from pipeline.chain import manifest, why
from pipeline.data import recipe
from pipeline.data.split import key, out
from tests.conftest import SMALL, make_quietly
from tests.test_stream import groups, lines, texts, written


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The node and its evaluation, in which six steps count as enough, and the folder of its data."""
    folder = tmp_path_factory.mktemp("streamed")
    (folder / "a.jsonl").write_text(lines(texts(0, 300)))
    groups(folder / "c.parquet", texts(300, 500))
    name = written(folder, {"a.jsonl": "share: 0.7", "c.parquet": "share: 0.3"})
    flags = ["--recipe", name, *SMALL["pretrain"], "--output", folder / "runs" / "pretrain"]
    make_quietly("pretrain", *flags)
    make_quietly("evaluate", "--runs", folder / "runs", "--resamples", "50")
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made / "runs", tmp_path / "runs")


def test_it_is_evaluated_on_what_the_stream_left_out(made):
    record = manifest.read(made / "runs" / "pretrain")
    found = json.loads((made / "runs" / "evaluate.json").read_text())["nodes"]["pretrain"]
    held_out = recipe.of(record).rows("text", "held_out", record["seed"]).kept
    assert found["of"] == f"{len(held_out)} held-out documents of s"
    assert len(held_out) == sum(out(key({}, text), 0.05) for text in texts(0, 500)) > 0
    assert found["metrics"]["loss"]
    assert not found["skipped"]


def test_it_is_verified_and_a_report_tells_how_it_was_read(run, copy):
    status, said, err = run("verify", "--runs", copy)
    assert (status, "1 nodes and evaluate.json agree" in said) == (0, True), err
    assert run("report", "--runs", copy)[0] == 0
    page = (copy / "report.html").read_text()
    record = manifest.read(copy / "pretrain")["recipe"]
    assert f"pretrain, streamed: {record['rows']} rows read, and {record['stream']['held_out']} left out as held out" in page
    assert "the data is known by its names, sizes and times of files." in page
    assert "pretrain, mixture: a.jsonl " in page


def test_it_is_pushed_with_a_card_that_says_so(run, copy, hub):
    path = copy / "pretrain" / manifest.NAME
    record = json.loads(path.read_text())  # whoever runs the tests may be at work on the code
    path.write_text(json.dumps(record | {"code": record["code"] | {"commit": "c" * 40, "dirty": False}}))
    path = copy / "evaluate.json"
    summary = json.loads(path.read_text())
    for item in [summary["nodes"]["pretrain"]["primary"], *summary["nodes"]["pretrain"]["comparisons"]]:
        item |= {"value": -0.3, "low": -0.4, "high": -0.2, "better": True}
    path.write_text(json.dumps(summary))
    status, _, err = run("push", "--hub", "me/small", "--runs", copy)
    assert status == 0, err
    ((_, repo),) = hub.repos.items()
    card = repo.commits[repo.head]["README.md"].data.decode()
    assert "pretrain, streamed: " in card
    assert "pretrain, mixture: a.jsonl " in card
    assert str(copy.parent.parent) not in card


def test_what_changed_is_told_by_what_the_data_is_known_by():
    asked = {"stage": "pretrain", "recipe": "1", "parents": {}}
    old = {"request": asked, "recipe": {"name": "s", "sources": [["s/a.jsonl", "5 bytes, changed at 1 ns"], ["b", "f" * 64]]}}
    new = {
        "request": asked | {"recipe": "2"},
        "recipe": {"name": "s", "sources": [["s/a.jsonl", "6 bytes, changed at 2 ns"], ["b", "e" * 64]]},
    }
    assert why.changes(old, new) == [
        "recipe s: b was edited", "recipe s: s/a.jsonl 6 bytes, changed at 2 ns; was 5 bytes, changed at 1 ns",
    ]  # fmt: skip

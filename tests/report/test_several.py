"""Several runs in one report: each figure where it belongs, and everything by which they differ."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline.chain import manifest
from pipeline.commands.__main__ import flags
from pipeline.evaluation import table
from pipeline.report import several


@pytest.fixture
def two(evaluated, tmp_path):
    """The small chain and the same with another seed and other figures of SFT."""
    folders = [Path(shutil.copytree(evaluated, tmp_path / name / "small")) for name in ("one", "<two>")]
    record = manifest.read(folders[1] / "sft")
    record["config"]["learning_rate"] = 0.5
    (folders[1] / "sft" / "manifest.json").write_text(
        json.dumps(record | {"seed": 7, "versions": record["versions"] | {"torch": "0.1"}})
    )
    summary = manifest.read(folders[1], "evaluate.json")
    summary["nodes"]["sft"]["figures"]["loss"]["sft"] = {"value": 1.5, "low": 1.25, "high": 1.75}
    (folders[1] / "evaluate.json").write_text(json.dumps(summary))
    return folders


def cells(page, caption):
    """Return the cells of a table, row by row."""
    found = re.search(rf"<caption[^>]*>{re.escape(caption)}.*?</table>", page, flags=re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", found[0], flags=re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_every_figure_of_every_run_stands_in_its_cell(run, two):
    status, _, err = run("report", "--runs", f"{two[0]} '{two[1]}'")
    assert status == 0, err
    page = (two[0] / "several.html").read_text()
    assert "2 runs side by side" in page
    summaries = [manifest.read(folder, "evaluate.json") for folder in two]
    for name in ("pretrain", "sft", "dpo"):
        head, *rows = cells(page, f"Figures of {name}")
        assert head == ["metric", "one", "<two>", "mean, least to most"]
        block = summaries[0]["nodes"][name]
        own = [metric for metric, figures in block["figures"].items() if name in figures]
        assert [row[0] for row in rows] == own
        for metric, *found, _ in rows:
            described = block["metrics"][metric]
            assert found == [table.figure(described, one["nodes"][name]["figures"][metric][name]) for one in summaries]
    (loss,) = (row for row in cells(page, "Figures of sft") if row[0] == "loss")
    first = summaries[0]["nodes"]["sft"]["figures"]["loss"]["sft"]["value"]
    assert loss[3] == f"{(first + 1.5) / 2:.3f} [1.500, {first:.3f}]"
    assert "<two>" not in page
    assert run("report", "--runs", f"{two[0]} '{two[1]}'")[1].startswith("report   up to date")


def test_what_differs_is_named_and_nothing_else(run, two):
    assert run("report", "--runs", f"{two[0]} '{two[1]}'")[0] == 0
    page = (two[0] / "several.html").read_text()
    rows = {row[0]: row[1:] for row in cells(page, "What differs in how sft was made")[1:]}
    assert rows.keys() == {"learning_rate", "seed", "torch"}
    assert rows["seed"] == ["42", "7"]
    assert cells(page, "What differs in how dpo was made")[0][0].startswith("Nothing: ")
    assert "The runs made the same files" in page


def test_a_node_of_one_run_alone_and_a_run_named_twice(run, two):
    shutil.rmtree(two[1] / "dpo")
    assert run("report", "--runs", f"{two[0]} '{two[1]}'")[0] == 0
    assert "Not in every run, and so not shown: dpo." in (two[0] / "several.html").read_text()
    status, _, err = run("report", "--runs", f"{two[0]} {two[0]}")
    assert status == 2
    assert "is named twice" in err


def test_runs_are_named_by_what_tells_them_apart():
    assert several.labels([Path("/a/one/tiny"), Path("/a/two/tiny")]) == ["one", "two"]
    assert several.labels([Path("/a/x/tiny"), Path("/a/x/other")]) == ["tiny", "other"]
    assert several.labels([Path("/a/x/tiny"), Path("/b/x/tiny")]) == ["a", "b"]


def test_make_hands_over_several_folders(monkeypatch, tmp_path):
    from pipeline.commands import report

    monkeypatch.setenv("PROFILE", "tiny")
    monkeypatch.setenv("RUNS", "runs again")
    assert flags("report", report) == ["--runs=runs/tiny again/tiny"]
    blank = tmp_path / "my runs"
    blank.mkdir()
    monkeypatch.setenv("RUNS", str(blank))
    (flag,) = flags("report", report)
    assert report._folders(flag.removeprefix("--runs=")) == [blank / "tiny"]

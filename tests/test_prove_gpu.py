"""`make prove-gpu` works on a CPU with small sizes, says that this proves nothing of an accelerator, and hides no failure."""

import json
import subprocess
import sys

import pytest

from pipeline import ROOT
from pipeline.chain import profile
from pipeline.system.config import read_profile
from tests import prove_gpu
from tests.prove_gpu import PARTS, Row, __main__, chains, isolation


def test_the_table_says_where_it_was_made_and_what_falls_short():
    lines = [
        ("large", Row("memory", "2.00 GB", "within 10%", False)),
        ("kills", Row("sft", "the same", "the same", True)),
        ("all", Row("minutes", "3")),
    ]
    small, whole = (__main__.table("somewhere", flag, lines) for flag in (True, False))
    assert "proves nothing of an accelerator" in small[0]
    assert "proves nothing" not in whole[0]
    assert [line[:5] for line in whole[1:]] == ["SHORT", "ok   ", "     "]
    assert whole[1].endswith("wanted within 10%")


def test_a_part_that_fails_is_a_line_that_falls_short(monkeypatch, tmp_path, capsys):
    def rows(place, small):
        yield Row("first", "1")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(isolation, "rows", rows)
    assert __main__.inside("isolation", tmp_path, True) == 0
    first, last = json.loads((tmp_path / "isolation.json").read_text())
    assert first["found"] == "1"
    assert (last["found"], last["holds"]) == ("out of memory", False)


def test_an_unknown_part_is_refused():
    done = subprocess.run([sys.executable, "-m", "tests.prove_gpu", "speeed"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there are chains, large, speed, isolation, kills" in done.stderr


@pytest.mark.parametrize("name", chains.PROFILES)
def test_a_shortened_profile_has_the_nodes_of_the_whole_one(name, tmp_path):
    folder = chains.shortened(name, tmp_path)
    whole, short = profile.load(profile.find(name)), profile.load(folder)
    assert list(short.nodes) == list(whole.nodes)
    trained = [node for node in short.nodes.values() if node.stage.library_of(node.settings)]
    assert trained
    assert all(node.settings["max_steps"] == 2 for node in trained)
    assert read_profile(folder / "evaluate.yaml")["rows"] == 4


@pytest.mark.measured
@pytest.mark.parametrize("part", PARTS)
def test_each_part_runs_on_a_cpu(part):
    done = subprocess.run(
        [sys.executable, "-m", "tests.prove_gpu", part], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "small sizes" in done.stdout
    assert prove_gpu.__doc__

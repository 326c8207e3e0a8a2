"""The libraries are imported with less work, and do the same afterwards."""

import gc
import importlib.metadata
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.system import imports
from tests.conftest import flags_of, last

COMMAND = """
import os, runpy, sys
if sys.argv.pop(1) == "as they come":
    from pipeline.system import imports
    imports.quicken = imports.settle = lambda: None
try:
    runpy.run_path("stages/sft.py", run_name="__main__")
finally:
    print("seconds", sum(os.times()[:2]))
"""


def test_boxes_are_matched_as_scipy_matches_them():
    from transformers.loss import loss_for_object_detection, loss_rt_detr

    costs = [[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]
    for module in (loss_for_object_detection, loss_rt_detr):
        rows, columns = module.linear_sum_assignment(costs)
        assert (rows.tolist(), columns.tolist()) == ([0, 1, 2], [1, 0, 2])
    import scipy.optimize

    assert scipy.optimize.minimize_scalar(lambda x: (x - 2) ** 2).x == pytest.approx(2), "the stand-in is gone"


def test_the_models_of_transformers_are_read_once_and_are_all_there():
    import transformers
    from transformers.utils import import_utils

    folder = Path(transformers.__file__).parent / "models"
    one, other = (import_utils.create_import_structure_from_path(path) for path in (folder, str(folder / "__init__.py")))
    assert one is other
    assert other == import_utils.create_import_structure_from_path.__wrapped__.__wrapped__(folder)
    assert "modeling_llama" in str(other["llama"])


def test_accelerate_looks_for_a_package_once(monkeypatch):
    from accelerate.utils import imports as theirs

    assert theirs.is_peft_available()
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: pytest.fail(f"asked for {name} again"))
    assert theirs.is_peft_available()


def test_quickening_twice_is_quickening_once():
    before = list(sys.meta_path), importlib.metadata.packages_distributions
    imports.quicken()
    assert (sys.meta_path, importlib.metadata.packages_distributions) == before


def test_what_is_settled_is_not_searched_again():
    gc.unfreeze()
    imports.settle()
    frozen = gc.get_freeze_count()
    assert frozen > 1000
    kept = [[] for _ in range(100)]
    imports.settle()
    assert gc.get_freeze_count() <= frozen, "objects of one training are not kept for ever in a process of many"
    del kept


@pytest.mark.measured
def test_the_time_from_a_command_to_the_end_of_one_step(chain, data, tmp_path):
    """CPU seconds of an SFT of one step, with the libraries as they come and with this; medians of five, interleaved."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    spent = {"as they come": [], "quickened": []}
    for number in range(5):
        for how, seconds in spent.items():
            flags = last([*flags_of("sft", chain, data, tmp_path / f"{how}-{number}"), "--max_steps", "1"])
            command = [sys.executable, "-c", COMMAND, how, *flags]
            out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
            seconds.append(float(out.rpartition("seconds ")[2]))
    medians = {how: statistics.median(seconds) for how, seconds in spent.items()}
    share = medians["quickened"] / medians["as they come"]
    print(
        f"\nSFT of one step: {medians['as they come']:.1f} s of CPU as they come, {medians['quickened']:.1f} s quickened: {share:.2f}"
    )
    assert share < 0.9
    weights = {(tmp_path / f"{how}-0" / "model.safetensors").read_bytes() for how in spent}
    assert len(weights) == 1

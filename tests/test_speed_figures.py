"""The figures of docs/speed.md: each test prints its own.

    python -m pytest -m measured -s tests/test_speed_figures.py -k NAME

All are ratios of two sides that take turns in one run, in seconds of the processor, since other work on the machine slows both.
"""

import os
import shutil
import statistics
import subprocess
import sys

import pytest

from pipeline import ROOT
from tests.conftest import flags_of, last

pytestmark = pytest.mark.measured
BEFORE = "97f92c1"  # the commit before this was begun: an SFT of one step took 4.9 s, of which imports were most
REPEATS = 7


@pytest.fixture
def before(tmp_path):
    """The project as it was at `BEFORE`."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE], capture_output=True)
    if archive.returncode:
        pytest.skip(f"this checkout does not hold commit {BEFORE}")
    tree = tmp_path / "before"
    tree.mkdir()
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    return tree


def spent(command, tree):
    """Run a command in a tree of the project, and return the seconds of the processor and of the clock that it took."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    began = os.times()
    subprocess.run([sys.executable, *command], cwd=tree, env=environment, check=True, capture_output=True)
    ended = os.times()
    processor = ended.children_user + ended.children_system - began.children_user - began.children_system
    return processor, ended.elapsed - began.elapsed


def test_start(before, chain, data, tmp_path):
    """From the command to the end of an SFT of one step: at most 3.5 s where it took 4.9."""
    trees, output = {"before": before, "now": ROOT}, tmp_path / "sft"
    taken = {name: [] for name in trees}
    for number in range(REPEATS):
        for name, tree in sorted(trees.items(), reverse=bool(number % 2)):
            shutil.rmtree(output, ignore_errors=True)
            flags = last([*flags_of("sft", chain, data, output), "--max_steps", "1"])
            taken[name].append(spent([str(tree / "stages" / "sft.py"), *flags], tree))
    (old, old_clock), (new, new_clock) = (
        [statistics.median(column) for column in zip(*taken[name], strict=True)] for name in ("before", "now")
    )
    print(
        f"\nSFT of one step: {new:.2f} s of the processor, {old:.2f} s at {BEFORE}: {new / old:.2f}; "
        f"by the clock {new_clock:.2f} s and {old_clock:.2f} s"
    )
    assert new / old <= 3.5 / 4.9

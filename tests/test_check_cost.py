"""What all checks before the first step cost, of `tiny`'s pretraining and of an SFT on 1,000 rows; printed by `make measure`."""

import functools
import inspect
import json
import time

import pytest

from pipeline import ROOT
from pipeline.data import doubts, shown
from pipeline.training import guards, outcome, rates

STEPS, WHOLE = 30, 1190  # of the profile
pytestmark = pytest.mark.measured


@pytest.fixture
def checks(monkeypatch):
    """Seconds of every function that checks, those that one calls counted with it."""
    spent, depth = {}, [0]

    def timed(module, name):
        function = getattr(module, name)

        @functools.wraps(function)
        def call(*given, **named):
            depth[0] += 1
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    key = f"{module.__name__.rpartition('.')[2]}.{name}"
                    spent[key] = spent.get(key, 0.0) + time.perf_counter() - started

        monkeypatch.setattr(module, name, call)

    for module in (guards, rates):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("_") and function.__module__ == module.__name__:
                timed(module, name)
    timed(doubts, "of")
    timed(outcome, "losses")
    for name in ("conversation", "checked"):  # which encode a row and check it
        if hasattr(shown, name):
            timed(shown, name)
    return spent


def told(title, spent, rest):
    found = ", ".join(f"{name} {seconds:.3f}" for name, seconds in sorted(spent.items(), key=lambda one: -one[1])[:5])
    print(f"\n{title}: {sum(spent.values()):.2f} s of checks ({found}){rest}")


def test_of_the_pretraining_of_tiny(checks, run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = ("--config", ROOT / "stages/profiles/tiny/pretrain.yaml", "--output", tmp_path / "out", "--max_steps", STEPS)
    status, _, err = run("pretrain", *flags)
    assert status == 0, err
    seconds = json.loads((tmp_path / "out" / "manifest.json").read_text())["training_seconds"]
    share = sum(checks.values()) / (seconds / STEPS * WHOLE)
    told("pretraining of tiny", checks, f", {share:.1%} of {WHOLE:,} steps at {seconds / STEPS:.3f} s each")
    assert share < 0.03


def test_of_an_sft_on_a_thousand_rows(checks, run, chain, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Who saw number {at}?"},
                {"role": "assistant", "content": f"Animal {at} did."},
            ]
        }
        for at in range(1100)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--parent", chain / "sft", "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "out", "--max_steps", 2)
    status, _, err = run("sft", *flags)
    assert status == 0, err
    told("SFT on 1,000 rows, their encoding included", checks, "")
    assert checks["shown.conversation"]

"""What all checks before the first step cost, of `tiny`'s pretraining and of an SFT on 1,000 rows; printed by `make measure`."""

import functools
import inspect
import json
import time

import pytest

from pipeline import ROOT
from pipeline.data import doubts, shown, tokens, types
from pipeline.models import tokenization
from pipeline.training import guards, outcome, parents, rates

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

    for module in (guards, parents, rates):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("_") and function.__module__ == module.__name__:
                timed(module, name)
    timed(doubts, "of")
    timed(outcome, "losses")
    timed(shown, "conversation")  # which encodes a row and checks it
    return spent


def conversations(count):
    return [
        {
            "messages": [
                {"role": "user", "content": f"Who saw number {at}?"},
                {"role": "assistant", "content": f"Animal {at} did."},
            ]
        }
        for at in range(count)
    ]


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
    rows = conversations(1100)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--parent", chain / "sft", "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "out", "--max_steps", 2)
    status, _, err = run("sft", *flags)
    assert status == 0, err
    told("SFT on 1,000 rows, their encoding included", checks, "")
    assert checks["shown.conversation"]


def test_checks_of_a_thousand_conversations(chain):
    tokenizer = tokenization.load(str(chain / "sft"))
    rows = conversations(1000)
    seconds = {}
    for name, action in {
        "encoding": lambda: [tokens.encode_messages(row["messages"], tokenizer) for row in rows],
        "encoding and checking": lambda: [shown.conversation(row["messages"], tokenizer) for row in rows],
        "doubts": lambda: doubts.of(rows, types.load("messages")),
    }.items():
        found = []
        for _ in range(3):
            started = time.perf_counter()
            action()
            found.append(time.perf_counter() - started)
        seconds[name] = sorted(found)[1]
    print("\n" + ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items()))
    assert seconds["encoding and checking"] < 10 * seconds["encoding"]

"""What all checks before the first step cost, of `tiny`'s pretraining and of an SFT on 1,000 rows; printed by `make measure`."""

import functools
import inspect
import json
import time

import pytest

from pipeline import ROOT
from pipeline.data import doubts, shown, tokens, types
from pipeline.models import tokenization
from pipeline.system import cores
from pipeline.training import first_step, guards, outcome, parents, rates
from tests import conftest

STEPS, WHOLE = 30, 1190  # of the profile
pytestmark = pytest.mark.measured


@pytest.fixture
def checks(monkeypatch):
    """CPU seconds of every function that checks before the first step, those that one calls counted with it, and when each step was done."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    spent, depth, stepped = {}, [0], []
    hook = register_optimizer_step_post_hook(lambda *_: stepped.append(time.process_time()))
    monkeypatch.setattr(conftest, "LOOKS", 8)

    def timed(module, name, within=False):  # `within`: of another one, whose own seconds are then without it
        function = getattr(module, name)

        @functools.wraps(function)
        def call(*given, **named):
            depth[0] += not within
            started = time.process_time()
            try:
                return function(*given, **named)
            finally:
                depth[0] -= not within
                key, seconds = f"{module.__name__.rpartition('.')[2]}.{name}", time.process_time() - started
                if stepped:
                    pass
                elif within:
                    spent["shown.conversation"] = spent.get("shown.conversation", 0.0) - seconds
                elif not depth[0]:
                    spent[key] = spent.get(key, 0.0) + seconds

        monkeypatch.setattr(module, name, call)

    for module in (guards, parents, rates, first_step):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("_") and function.__module__ == module.__name__:
                timed(module, name)
    timed(doubts, "of")
    timed(outcome, "losses")
    timed(shown, "conversation")  # which encodes a row, as is needed anyway, and checks it
    timed(shown, "encode_messages", within=True)
    yield spent, stepped
    hook.remove()


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


def told(title, spent, whole=0.0):
    """Print a table of what each check costs, of `whole` seconds where they are a share of something."""
    print(f"\n{title}: {sum(spent.values()):.3f} s of checks")
    for name, seconds in sorted(spent.items(), key=lambda one: -one[1]):
        print(f"  {name:<26} {seconds:7.3f} s" + (f"  {seconds / whole:6.2%}" if whole else ""))


def test_of_the_pretraining_of_tiny(checks, run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = ("--config", ROOT / "stages/profiles/tiny/pretrain.yaml", "--output", tmp_path / "out", "--max_steps", STEPS)
    status, _, err = run("pretrain", *flags)
    assert status == 0, err
    spent, stepped = checks
    step = (stepped[-1] - stepped[0]) / (len(stepped) - 1)
    told(f"pretraining of tiny, {WHOLE:,} steps at {step:.3f} s each", spent, step * WHOLE)
    assert sum(spent.values()) < 0.03 * step * WHOLE


def test_of_an_sft_on_a_thousand_rows(checks, run, chain, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "count", lambda: 1)  # so that rows are encoded and checked where seconds are counted
    rows = conversations(1100)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--parent", chain / "sft", "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "out", "--max_steps", 2)
    status, _, err = run("sft", *flags)
    assert status == 0, err
    spent, _ = checks
    told("SFT on 1,000 rows, without their encoding", spent)
    assert spent["shown.conversation"] > 0
    assert sum(spent.values()) < 1


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
            started = time.process_time()
            action()
            found.append(time.process_time() - started)
        seconds[name] = sorted(found)[1]
    print("\n" + ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items()))
    assert seconds["encoding and checking"] < 10 * seconds["encoding"]

"""What the checks of 1,000 conversations cost before the first step of SFT; printed by `make measure`."""

import time

import pytest

from pipeline.data import doubts, shown, tokens, types
from pipeline.models import tokenization


@pytest.mark.measured
def test_checks_of_a_thousand_conversations(chain):
    tokenizer = tokenization.load(str(chain / "sft"))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Who saw number {at}?"},
                {"role": "assistant", "content": f"Animal {at} did."},
            ]
        }
        for at in range(1000)
    ]
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

import pytest

from pipeline.data.shapes import Malformed, fault, recognise
from pipeline.system.errors import UserError

U = {"role": "user", "content": "Hi"}
A = {"role": "assistant", "content": "Ho"}
B = {"role": "assistant", "content": "No"}
S = {"role": "system", "content": "Be"}

LAYOUTS = [
    ("text", "text", {"text": "Hi", "id": 3}, {"text": "Hi"}),
    ("text", "content", {"content": "Hi"}, {"text": "Hi"}),
    ("labels", "text and label", {"text": "Hi", "label": 3}, {"text": "Hi", "label": "3"}),
    ("messages", "OpenAI messages", {"messages": [S, U, A]}, {"messages": [S, U, A]}),
    ("messages", "ShareGPT", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, {"messages": [U, A]}),
    ("messages", "ShareGPT", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "system": "Be"},
     {"messages": [S, U, A]}),
    ("messages", "Alpaca", {"instruction": "Hi", "input": "", "output": "Ho"}, {"messages": [U, A]}),
    ("messages", "Alpaca", {"instruction": "Add", "input": "1 2", "output": "3"},
     {"messages": [{"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}]}),
    ("messages", "prompt and completion", {"prompt": "Hi", "completion": "Ho"}, {"messages": [U, A]}),
    ("messages", "prompt and completion", {"prompt": [S, U], "completion": [A]}, {"messages": [S, U, A]}),
    ("preference", "chosen and rejected", {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    ("preference", "chosen and rejected", {"prompt": [S, U], "chosen": [A], "rejected": [B]}, {"prompt": [S, U], "chosen": [A], "rejected": [B]}),
    ("preference", "chosen and rejected", {"chosen": [S, U, A], "rejected": [S, U, B]}, {"prompt": [S, U], "chosen": [A], "rejected": [B]}),
    # UltraFeedback binarized: the prompt as a string, and again inside both sides
    ("preference", "chosen and rejected", {"prompt": "Hi", "chosen": [U, A], "rejected": [U, B], "score_chosen": 8.0},
     {"prompt": [U], "chosen": [A], "rejected": [B]}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "layout", "row", "wanted"), LAYOUTS)
def test_layouts_are_recognised_and_converted(shape, layout, row, wanted):
    name, convert = recognise(row, shape, "f:1")
    assert name == layout
    assert convert(row) == wanted
    assert fault(wanted, shape) is None


def test_an_unknown_layout_says_what_was_found_and_expected():
    with pytest.raises(UserError, match=r"f:1: no layout for messages: found columns \{a, b\}, expected \{messages\} or"):
        recognise({"b": 1, "a": 2}, "messages", "f:1")


@pytest.mark.parametrize(
    ("shape", "row"),
    [("text", {"text": 5}), ("messages", {"messages": "Hi"}), ("messages", {"messages": [{"role": "user"}]}),
     ("messages", {"conversations": [{"from": "martian", "value": "Hi"}]}), ("preference", {"chosen": "a", "rejected": "b"}),
     ("messages", {"instruction": "Hi", "output": None})],
)  # fmt: skip
def test_malformed_rows_are_refused(shape, row):
    _, convert = recognise(row, shape, "f:1")
    with pytest.raises(Malformed):
        convert(row)


@pytest.mark.parametrize(
    ("shape", "row", "reason"),
    [("text", {"text": " \n"}, "empty text"), ("messages", {"messages": [U]}, "no assistant text"),
     ("messages", {"messages": [U, A, U]}, "does not end with the assistant"),
     ("preference", {"prompt": [U], "chosen": [A], "rejected": [A]}, "chosen equals rejected"),
     ("preference", {"prompt": [], "chosen": [A], "rejected": [B]}, "no prompt")],
)  # fmt: skip
def test_unusable_rows_have_a_reason(shape, row, reason):
    assert fault(row, shape) == reason

import json

import pytest

from pipeline.data import recipe, types
from pipeline.data.types import Malformed, recognise
from pipeline.system.errors import UserError

U = {"role": "user", "content": "Hi"}
A = {"role": "assistant", "content": "Ho"}
B = {"role": "assistant", "content": "No"}
S = {"role": "system", "content": "Be"}

FORMATS = [
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
    ("prompts", "prompt", {"prompt": "Hi"}, {"prompt": [U]}),
    ("prompts", "prompt", {"prompt": [S, U], "answer": "Ho", "level": 3}, {"prompt": [S, U], "answer": "Ho", "level": 3}),
    ("feedback", "prompt, completion and label", {"prompt": "Hi", "completion": "Ho", "label": True}, {"prompt": [U], "completion": [A], "label": True}),
    ("feedback", "prompt, completion and label", {"prompt": [S, U], "completion": [A], "label": "down"}, {"prompt": [S, U], "completion": [A], "label": False}),
    ("feedback", "prompt, completion and label", {"prompt": "Hi", "completion": [U, A], "label": 1}, {"prompt": [U], "completion": [A], "label": True}),
    ("feedback", "completion and label", {"completion": [S, U, A], "label": 0}, {"prompt": [S, U], "completion": [A], "label": False}),
    ("feedback", "messages and label", {"messages": [U, A, U, B], "label": "👍"}, {"prompt": [U, A, U], "completion": [B], "label": True}),
]  # fmt: skip


@pytest.mark.parametrize(("type", "format", "row", "wanted"), FORMATS)
def test_formats_are_recognised_and_converted(type, format, row, wanted):
    name, _, convert, *_ = recognise(row, type, "f:1")
    assert name == format
    assert convert(row) == wanted
    assert types.load(type).fault(wanted) is None


def test_an_unknown_format_says_what_was_found_and_expected():
    with pytest.raises(UserError, match=r"f:1: no format of messages: found columns \{a, b\}, expected \{messages\} or"):
        recognise({"b": 1, "a": 2}, "messages", "f:1")


@pytest.mark.parametrize(
    ("type", "row", "remedy"),
    [("messages", {"Question": "why", " Answer": "so"}, "`columns: { Answer: answer, Question: question}` in a recipe reads it"),
     ("messages", {"turns": [U, A]}, "`columns: {turns: messages}` in a recipe reads it"),
     ("messages", {"dialog": [{"from": "human", "value": "Hi"}], "id": 1}, "`columns: {dialog: messages}` in a recipe reads it"),
     ("messages", {"data": [{"prompt": "Hi", "completion": "Ho"}]}, "if the rows are in data, make a file of that list alone"),
     ("messages", {"prompt": "Hi", "chosen": "a", "rejected": "b"}, "it is a row of type preference"),
     ("preference", {"prompt": "Hi", "completion": "Ho"}, "it is a row of type messages"),
     ("preference", {"question": "Hi", "better": "a", "worse": "b"}, "rename the columns, or name them in a recipe, as in `columns: {mine: chosen}`")],
)  # fmt: skip
def test_an_unknown_format_says_what_to_do(type, row, remedy):
    with pytest.raises(UserError) as error:
        recognise(row, type, "f:1")
    assert error.value.faults[0].endswith(f"; {remedy}")


@pytest.mark.parametrize(
    ("type", "row", "reason"),
    [("messages", {"prompt": "Hi", "completion": None}, "no assistant text"),
     ("messages", {"instruction": "Hi", "output": None}, "no assistant text"),
     ("preference", {"prompt": "Hi", "chosen": None, "rejected": "b"}, "empty chosen"),
     ("feedback", {"prompt": "Hi", "completion": None, "label": True}, "empty completion")],
)  # fmt: skip
def test_an_answer_that_is_null_is_an_empty_one(type, row, reason):
    """As pandas writes an empty cell: a counted drop, and no fault of the file."""
    assert types.load(type).fault(recognise(row, type, "f:1").convert(row)) == reason


def test_what_is_neither_text_nor_messages_is_told_by_its_column():
    with pytest.raises(Malformed, match=r"^completion is int, neither text nor messages$"):
        recognise({"prompt": "Hi", "completion": 4}, "messages", "f:1").convert({"prompt": "Hi", "completion": 4})
    with pytest.raises(Malformed, match=r"^prompt is null, neither text nor messages$"):
        recognise({"prompt": None, "completion": "a"}, "messages", "f:1").convert({"prompt": None, "completion": "a"})


@pytest.mark.parametrize(
    ("type", "row"),
    [("text", {"text": 5}), ("messages", {"messages": "Hi"}), ("messages", {"messages": [{"role": "user"}]}),
     ("messages", {"conversations": [{"from": "martian", "value": "Hi"}]}), ("preference", {"chosen": "a", "rejected": "b"}),
     ("messages", {"instruction": None, "output": "Hi"}), ("prompts", {"prompt": 3}), ("feedback", {"completion": "Ho", "label": True}),
     *(("feedback", {"prompt": "Hi", "completion": "Ho", "label": label}) for label in (None, 2, -1, 0.5, "maybe", "", [True]))],
)  # fmt: skip
def test_malformed_rows_are_refused(type, row):
    convert = recognise(row, type, "f:1").convert
    with pytest.raises(Malformed):
        convert(row)


@pytest.mark.parametrize(
    ("type", "row", "reason"),
    [("text", {"text": " \n"}, "empty text"), ("messages", {"messages": [U]}, "no assistant text"),
     ("messages", {"messages": [U, A, U]}, "does not end with the assistant"),
     ("preference", {"prompt": [U], "chosen": [A], "rejected": [A]}, "chosen equals rejected"),
     ("preference", {"prompt": [U], "chosen": [A, U], "rejected": [B]}, "chosen does not end with the assistant"),
     ("preference", {"prompt": [], "chosen": [A], "rejected": [B]}, "no prompt"),
     ("prompts", {"prompt": []}, "no prompt"), ("prompts", {"prompt": [{"role": "user", "content": " "}]}, "no prompt"),
     ("prompts", {"prompt": [U, A]}, "ends with the assistant"),
     ("feedback", {"prompt": [], "completion": [A], "label": True}, "no prompt"),
     ("feedback", {"prompt": [U], "completion": [{"role": "assistant", "content": " "}], "label": True}, "empty completion"),
     ("feedback", {"prompt": [U], "completion": [A, U], "label": True}, "does not end with the assistant"),
     ("feedback", {"prompt": [U], "completion": [A], "label": 1}, "label neither true nor false")],
)  # fmt: skip
def test_unusable_rows_have_a_reason(type, row, reason):
    assert types.load(type).fault(row) == reason


def test_every_type_says_what_its_rows_are():
    assert {"text", "messages", "preference", "feedback", "labels", "answers", "tags", "translation", "similarity"} <= set(
        types.known()
    )
    assert not [name for name in types.known() if name.startswith("_")]
    for name in types.known():
        found = types.load(name)
        assert found.name == name
        assert found.columns
        assert found.items
        assert found.formats
        assert all(set(column) <= set("abcdefghijklmnopqrstuvwxyz_12") for item in found.formats for column in item.columns)
    with pytest.raises(
        UserError, match="dataset type: massages: no such type; known are answers, feedback, image_text, images, labels"
    ):
        types.load("massages")


@pytest.mark.parametrize(
    ("type", "row", "wanted"),
    [("text", {"text": "Hi"}, None), ("messages", {"messages": [S, U, A]}, [S, U]), ("messages", {"messages": [S, U, A, U, B]}, [S, U, A, U]),
     ("messages", {"messages": [A]}, None), ("preference", {"prompt": [S, U], "chosen": [A], "rejected": [B]}, [S, U]),
     ("prompts", {"prompt": [S, U], "answer": "Ho"}, [S, U]),
     ("labels", {"text": "Hi", "label": "1"}, None), ("feedback", {"prompt": [S, U], "completion": [A], "label": True}, [S, U])],
)  # fmt: skip
def test_what_a_chat_model_can_be_asked(type, row, wanted):
    assert types.load(type).prompt(row) == wanted


VERSES = '''"""Verses."""

from pipeline.data.types import DatasetType, Format


class Verses(DatasetType):
    columns = "`lines`: the lines of a verse"
    items = "verses"
    filled = ("lines",)
    formats = (Format("poem", frozenset({"poem"}), lambda row: {"lines": row["poem"].splitlines()}),)


TYPE = Verses()
'''


def test_a_new_type_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "verses.py").write_text(VERSES)
    monkeypatch.setattr(types, "__path__", [*types.__path__, str(tmp_path)])
    assert "verses" in types.known()
    (tmp_path / "poems.jsonl").write_text('{"poem": "Tyger\\nburning"}\n{"poem": " "}\n')
    (tmp_path / "poems.yaml").write_text(f"type: verses\nsources:\n  - files: {tmp_path}/poems.jsonl\n")
    (tmp_path / "made.py").write_text("def verses(split, seed):\n    yield {'lines': ['a']}\n")
    for given in (recipe.load(str(tmp_path / "poems.yaml")), recipe.from_data(str(tmp_path / "poems.jsonl"), "verses")):
        found = given.rows("verses", "train", 1)
        assert (found.kept, found.dropped, found.formats) == (
            [{"lines": ["Tyger", "burning"]}],
            {"empty lines": 1},
            {"poem": 2},
        )
    assert recipe.load(str(tmp_path / "made.py")).types() == ["verses"]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLED = [U, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}, A]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
HH = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Hi\n\nAssistant: "

MORE = [
    ("messages", "OpenAI messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, A]},
     {"messages": [U, A]}),
    ("messages", "OpenAI messages", {"messages": [{"role": "developer", "content": "Be"}, U, A]}, {"messages": [S, U, A]}),
    ("messages", "OpenAI messages",
     {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}], "name": None},
                   {"role": "tool", "content": "2"}, A], "tools": json.dumps(TOOLS)},
     {"messages": [U | {"tools": TOOLS}, *CALLED[1:]]}),
    ("messages", "ShareGPT",
     {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "Ho"}], "system": "Be", "tools": TOOLS},
     {"messages": [S | {"tools": TOOLS}, *CALLED]}),
    ("messages", "OpenAI messages", {"messages": [U, {"role": "assistant", "content": "Ho", "thinking": "hm", "reasoning_content": None}]},
     {"messages": [U, A | {"reasoning_content": "hm"}]}),
    ("messages", "OpenAI messages", {"messages": [U, A | {"weight": 1}], "functions": [{"name": "add", "parameters": {}}]},
     {"messages": [U | {"tools": TOOLS}, A]}),
    ("messages", "OpenAI messages", {"messages": [S, U | {"weight": 0, "images": []}, A], "system": "Be"}, {"messages": [S, U, A]}),
    ("messages", "Alpaca", {"instruction": "Hi", "input": "", "output": "No", "system": "Be", "history": [["Hi", "Ho"]]}, {"messages": [S, U, A, U, B]}),
    ("messages", "Dolly", {"instruction": "Hi", "context": "", "response": "Ho", "category": "qa"}, {"messages": [U, A]}),
    ("messages", "question and answer", {"question": "Hi", "answer": "Ho"}, {"messages": [U, A]}),
    ("messages", "question and response", {"system_prompt": "Be", "question": "Hi", "response": "Ho", "id": "1"}, {"messages": [S, U, A]}),
    ("messages", "OpenAI messages", {"messages": [U, A], "chat_template_kwargs": {"custom_instructions": "Be", "enable_thinking": False, "python_tools": None,
                                     "xml_tools": [json.dumps(TOOLS[0])]}, "source": "x"}, {"messages": [S | {"tools": TOOLS}, U, A]}),
    ("preference", "ShareGPT pairs", {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Ho"},
                                      "rejected": {"from": "gpt", "value": "No"}}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    ("preference", "Human and Assistant", {"chosen": f"{HH}Ho", "rejected": f"{HH}No"}, {"prompt": [U, A, U], "chosen": [A], "rejected": [B]}),
    ("preference", "chosen_messages and rejected_messages", {"prompt": "Hi", "chosen_messages": [U, A], "rejected_messages": [U, B]},
     {"prompt": [U], "chosen": [A], "rejected": [B]}),
    ("preference", "question, chosen and rejected", {"system": "Be", "question": "Hi", "chosen": "Ho", "rejected": "No"},
     {"prompt": [S, U], "chosen": [A], "rejected": [B]}),
    # Tulu 3: of several turns the prompt is but one
    ("preference", "chosen and rejected", {"prompt": "Hi", "chosen": [S, U, A], "rejected": [S, U, B]}, {"prompt": [S, U], "chosen": [A], "rejected": [B]}),
    ("feedback", "ShareGPT and label", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "label": "false"},
     {"prompt": [U], "completion": [A], "label": False}),
    ("feedback", "prompt, response and label", {"prompt": "Hi", "response": "Ho", "label": "true"}, {"prompt": [U], "completion": [A], "label": True}),
]  # fmt: skip


@pytest.mark.parametrize(("type", "format", "row", "wanted"), MORE)
def test_tools_reasoning_and_other_writings(type, format, row, wanted):
    found = recognise(row, type, "f:1")
    assert found.name == format
    assert found.convert(row) == wanted
    assert types.load(type).fault(wanted) is None


def tree(*items):
    names = ("message_id", "parent_id", "role", "text", "rank")
    return {
        "message_tree_id": [dict(zip(names, item, strict=True)) | {"message_tree_id": "t", "deleted": False} for item in items]
    }


TREE = tree(
    ("p", None, "prompter", "Hi", None), ("b", "p", "assistant", "No", 1), ("a", "p", "assistant", "Ho", 0), ("c", "p", "assistant", "So", 2),
    ("q", "a", "prompter", "Hi", None), ("r", "a", "prompter", "Be", None), ("s", "q", "assistant", "No", 0),
)  # fmt: skip


def test_a_tree_of_messages_gives_its_best_answers_or_pairs():
    more = recognise(TREE, "messages", "f").convert(TREE)
    assert more == [{"messages": [U, A, U, B]}]
    assert recognise(TREE, "preference", "f").convert(TREE) == [
        {"prompt": [U], "chosen": [A], "rejected": [{"role": "assistant", "content": "So"}]}
    ]
    assert recognise(TREE, "messages", "f").name == "OpenAssistant trees"
    with pytest.raises(Malformed, match="the tree t is not whole"):
        recognise(TREE, "messages", "f").convert(tree(("p", "x", "prompter", "Hi", None)))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi", "completion": "Ho", "label": False}, "label says whether the answer is good, but rows of type messages"),
        ({"messages": [U, A], "images": ["a.png"]}, "images is what the text is about"),
        ({"messages": [U, A], "reasoning_content": "hm"}, "reasoning_content is part of the answer"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, A]}, "image is dict, neither a file nor"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, A]}, "a part of type input_audio; text alone is read"),
        ({"messages": [U, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "arguments: no JSON"),
        ({"messages": [U | {"images": ["a.png"]}, A]}, r"images of a message is what the text is about; `ignore: \[images\]`"),
        ({"messages": [U, A | {"weight": 0}, U, A]}, "weight of a message says not to train on this answer"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "train": False}]}, "train of a message says not"),
        ({"messages": [S, U, A], "system": "Be kind"}, "the system's words stand in a column and, otherwise, in the first message"),
        ({"messages": []}, "expected a list of messages, found an empty one"),
        ({"messages": [U, A], "tools": "[3]"}, "tools: expected a list of objects"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused(tmp_path, row, said):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=said):
        recipe.from_data(str(tmp_path / "a.jsonl"), "messages").rows("messages", "train", 1)


def test_what_is_ignored_on_purpose_or_of_no_matter_is_named_once(tmp_path):
    rows = [{"q": f"Hi {number}", "a": "Ho", "label": True, "id": number, "images": []} for number in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = tmp_path / "own.yaml"
    own.write_text(
        f"type: messages\nheld_out: 0\nsources:\n  - files: {tmp_path}/a.jsonl\n    columns: {{q: prompt, a: completion}}\n    ignore: [label]\n"
    )
    found = recipe.load(str(own)).rows("messages", "train", 1)
    assert found.kept[1] == {"messages": [{"role": "user", "content": "Hi 1"}, A]}
    assert found.notes == ["a.jsonl: not read: id"]
    own.write_text(own.read_text().replace("q:", "query:"))
    with pytest.raises(UserError, match=r"a.jsonl:1: columns: query: no such column; found \{a, id, images, q\}"):
        recipe.load(str(own)).rows("messages", "train", 1)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [([U, {"role": "assistant", "content": " "}, U, A], "empty assistant turn"), ([U, {"role": "assistant", "content": ""}], "no assistant text"),
     ([*CALLED[:2]], None)],
)  # fmt: skip
def test_an_answer_that_says_nothing_is_dropped_unless_it_calls(turns, reason):
    assert types.load("messages").fault({"messages": turns}) == reason


def test_rows_of_a_tree_are_gathered_and_those_of_ready_conversations_are_not(tmp_path):
    numbered = [item | {"message_tree_id": f"t{n}"} for n in range(30) for item in TREE["message_tree_id"]]
    ready = [{"messages": [U | {"content": f"Hi {n}"}, A], "message_tree_id": "t"} for n in range(30)]
    for given, count in ((numbered, 30), (ready, 30)):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        found = recipe.from_data(str(tmp_path / "a.jsonl"), "messages").rows("messages", "train", 1)
        assert len(found.kept) + found.held_out == count
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*numbered[::2], *numbered[1::2]]))
    with pytest.raises(UserError, match=r"the tree t\d+ is not whole, or its messages don't follow each other"):
        recipe.from_data(str(tmp_path / "a.jsonl"), "messages").rows("messages", "train", 1)


def test_rows_are_told_apart_by_all_their_columns_in_one_order():
    """Else the same row could be on either side of the split, in one process or another."""
    kind, letters = types.load("text"), "hgfedcba"
    for order in (letters, reversed(letters)):
        assert kind.asked({letter: letter.upper() for letter in order}) == "A\nB\nC\nD\nE\nF\nG\nH"
    numbers = [kind.asked({"values": values, "group": "1"}) for values in ([1.5, 2.0], [1.5, 2.5], [1.5, 2.0])]
    assert numbers[0] == numbers[2] != numbers[1], "what holds no text"

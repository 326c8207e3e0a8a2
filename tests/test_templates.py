"""What a conversation carries is written by the chat template, or refused; what the template refuses is dropped and counted."""

from collections import Counter

import pytest

from pipeline.data import tokens
from pipeline.models import control, tokenization
from pipeline.system.errors import UserError

USER, ANSWER = {"role": "user", "content": "Add 1 and 1."}, {"role": "assistant", "content": "It is 2."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds <|im_end|>", "parameters": {"type": "object"}}}]
CALLING = {"role": "assistant", "content": "", "reasoning_content": "A sum.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2", "name": "add"}
TALK = [USER | {"tools": TOOLS}, CALLING, RESULT, ANSWER]
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SELECTIVE = (
    "{% for m in messages %}{% if m['role'] in ['user', 'assistant'] %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def chat():
    made = tokenization.train(["x"], 260, 64)
    tokenization.set_template(made, "chatml-tools.jinja", "here")
    return made


def learned(tokenizer, turns):
    found = tokens.encode_messages(turns, tokenizer)
    return tokenizer.decode([label for label in found["labels"] if label != tokens.IGNORED])


def test_calls_and_reasoning_are_targets_and_tools_and_results_are_read(chat):
    text = chat.decode(tokenization.render(chat, TALK))
    assert text.startswith("<|endoftext|><|im_start|>system\n# Tools")
    assert '"description": "Adds <|im_end|>"' in text
    assert "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n" in text
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 1}}\n</tool_call>'
    assert learned(chat, TALK) == f"<think>\nA sum.\n</think>\n\n{call}<|im_end|>It is 2.<|im_end|>"


def test_a_text_of_tools_and_calls_never_becomes_a_control_token(chat):
    hostile = CALLING | {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": "<|im_end|>"}}}]}
    ends = [
        Counter(tokenization.render(chat, [USER | {"tools": TOOLS}, turn, RESULT, ANSWER]))[
            chat.convert_tokens_to_ids("<|im_end|>")
        ]
        for turn in (CALLING, hostile)
    ]
    assert ends[0] == ends[1]
    assert ends[0] == 5


def test_the_answer_to_a_prompt_with_tools_is_what_follows_it(chat):
    row = {"prompt": TALK[:3], "chosen": [ANSWER], "rejected": [ANSWER | {"content": "It is 3."}]}
    found = tokens.encode_pair(row, chat)
    assert chat.decode(found["chosen_ids"]) == "It is 2.<|im_end|>"
    assert found["prompt_ids"] == tokenization.render(chat, TALK[:3], answer_next=True)


def test_without_any_of_it_the_template_is_plain_chatml(chat):
    turns = [{"role": "system", "content": "Be kind."}, USER, ANSWER]
    found = tokens.encode_messages(turns, chat)
    tokenization.set_template(chat, "chatml.jinja", "here")
    assert tokens.encode_messages(turns, chat) == found


@pytest.mark.parametrize(
    ("turns", "name"),
    [([USER, CALLING | {"reasoning_content": ""}, RESULT, ANSWER], "tool_calls"), ([USER, ANSWER | {"reasoning_content": "hm"}], "reasoning_content"),
     ([USER | {"tools": TOOLS}, ANSWER], "tools")],
)  # fmt: skip
def test_a_template_that_does_not_know_it_is_refused(chat, turns, name):
    tokenization.set_template(chat, "chatml.jinja", "here")
    with pytest.raises(
        UserError, match=rf"chat_template: writes no {name}, which rows have; .* `ignore: \[{name}\]` in the source"
    ):
        list(
            tokens.pieces(
                [{"messages": turns}], lambda row: tokens.encode_messages(row["messages"], chat), 512, False, Counter()
            )
        )


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [(STRICT, [USER, ANSWER, ANSWER], "refused by the chat template: roles must alternate"),
     (SELECTIVE, [{"role": "critic", "content": "No!"}, USER, ANSWER], "role critic, which the chat template leaves out"),
     (SELECTIVE, [{"role": "system", "content": "Be kind."}, USER, ANSWER], "role system, which the chat template leaves out"),
     (SELECTIVE, [USER, ANSWER, RESULT, ANSWER], "role tool, which the chat template leaves out")],
)  # fmt: skip
def test_what_a_template_refuses_or_leaves_out_is_dropped_and_counted(chat, template, turns, reason):
    chat.chat_template = template
    dropped = Counter()
    rows = [{"messages": [USER, ANSWER]}, {"messages": turns}]
    kept = list(tokens.pieces(rows, lambda row: tokens.encode_messages(row["messages"], chat), 512, False, dropped))
    assert [example["row"] for example in kept] == [0]
    assert dropped == {reason: 1}
    with pytest.raises(control.Unfit, match="chat_template: "):
        tokenization.render(chat, turns)


def test_a_template_that_is_broken_stops_the_stage(chat):
    chat.chat_template = "{{ messages[0].nothing.here }}"
    with pytest.raises(UserError, match=r"chat_template: .*nothing") as error:
        tokenization.render(chat, [USER, ANSWER])
    assert not isinstance(error.value, control.Unfit)

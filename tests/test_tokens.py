import os
import signal
from collections import Counter

import pytest
from transformers import AutoModelForCausalLM

from pipeline.data import tokens
from pipeline.data.tokens import encode_messages, encode_pair, encode_text, pieces
from pipeline.models import tokenization
from pipeline.system.errors import UserError

_ = -100
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
NO_TAGS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes and special tokens alone: 0 end of text, 1 pad, 2 and 3 the chat tokens; a letter is the number of its byte."""
    made = tokenization.train(["x"], 260, 64)
    tokenization.set_template(made, "chatml.jinja", "here")
    return made


def spell(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(list(ids))).replace("Ċ", "\n")


def test_any_script_survives_the_tokenizer(tokenizer):
    text = "北京是中国的首都。 Ünïcödé\n\ttab 🙂"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_special_tokens_are_single_and_reserved(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2, 3]
    assert tokenization.stop_ids(tokenizer) == [0, 3]
    with pytest.raises(UserError, match="vocab_size: 100 does not even hold the 256 bytes"):
        tokenization.train(["x"], 100, 64)


def test_a_document_begins_and_ends_and_its_first_token_is_no_target(tokenizer):
    a, b = tokenizer.encode("ab", add_special_tokens=False)
    assert encode_text({"text": "ab"}, tokenizer) == {"input_ids": [0, a, b, 0], "labels": [_, a, b, 0]}


def test_a_long_document_is_split_and_each_token_is_a_target_once(tokenizer):
    dropped = Counter()
    row = {"text": "abcdef"}
    whole = encode_text(row, tokenizer)
    parts = list(pieces([row], lambda r: encode_text(r, tokenizer), 4, True, dropped))
    assert [len(part["input_ids"]) for part in parts] == [4, 4, 2]
    assert [label for part in parts for label in part["labels"] if label != _] == whole["labels"][1:]
    assert not dropped
    assert list(pieces([row], lambda r: encode_text(r, tokenizer), 4, False, dropped)) == []
    assert dropped == {"longer than max_length 4": 1}


@pytest.mark.parametrize("template", [None, NO_TAGS])
def test_only_the_assistant_and_its_end_token_are_targets(tokenizer, template):
    own, tokenizer.chat_template = tokenizer.chat_template, template or tokenizer.chat_template
    try:
        encoded = encode_messages([*TALK, {"role": "user", "content": "So"}, {"role": "assistant", "content": "No"}], tokenizer)
    finally:
        tokenizer.chat_template = own
    spelled = spell(tokenizer, encoded["input_ids"])
    shown = [token if label != _ else None for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True)]
    learned = spell(tokenizer, [token for token in shown if token is not None])
    assert spelled == (
        f"{'' if template else '<|endoftext|>'}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
        "<|im_start|>user\nSo<|im_end|>\n<|im_start|>assistant\nNo<|im_end|>\n"
    )
    assert learned == "Ho<|im_end|>No<|im_end|>"


def test_a_pair_shares_its_prompt_and_both_sides_end(tokenizer):
    row = {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": [{"role": "assistant", "content": "Ho ho"}]}
    encoded = encode_pair(row, tokenizer)
    assert spell(tokenizer, encoded["prompt_ids"]) == "<|endoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert spell(tokenizer, encoded["chosen_ids"]) == "Ho<|im_end|>"
    assert spell(tokenizer, encoded["rejected_ids"]) == "HoĠho<|im_end|>"


def test_a_template_whose_tokens_are_new_adds_them(tmp_path):
    made = tokenization.train(["x"], 260, 64)
    (tmp_path / "t.jinja").write_text(NO_TAGS.replace("im_end", "turn_end"))
    assert tokenization.set_template(made, str(tmp_path / "t.jinja"), "here") == ["<|turn_end|>"]
    assert tokenization.end_token(made) == len(made) - 1
    bare = tokenization.train(["x"], 260, 64)
    with pytest.raises(UserError, match=r"has no chat template; set `chat_template: chatml\.jinja`"):
        tokenization.set_template(bare, "", "here")


def test_objective_builds_what_transformers_loads(tmp_path, tokenizer):
    from pipeline import objectives
    from pipeline.models import checkpoint

    model = objectives.load("causal").build_model(
        tokenizer, "llama", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32
    )
    checkpoint.save(model, tokenizer, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [0, 3]
    with pytest.raises(UserError, match="objective: causla: no such objective; known are causal"):
        objectives.load("causla")
    with pytest.raises(UserError, match="architecture: llamma: transformers builds no causal model"):
        objectives.load("causal").build_model(tokenizer, "llamma", hidden_size=16, num_attention_heads=2)


def test_lengths_of_what_is_too_long_say_what_would_keep_it():
    from pipeline.data.rows import length_for

    too_long = Counter()
    rows = [{"ids": [0] * length} for length in (10, 100, 120, 400, 1000)]
    encode = lambda row: {"input_ids": row["ids"], "labels": row["ids"]}  # noqa: E731
    dropped = Counter()
    assert len(list(tokens.pieces(rows, encode, 50, False, dropped, too_long))) == 1
    assert dropped == {"longer than max_length 50": 4}
    assert length_for(0.99, 1, too_long) >= 1000
    assert 120 <= length_for(0.6, 1, too_long) < 130
    assert all(length <= tokens.rounded(length) < 1.07 * length + 1 for length in range(1, 5000))


def test_a_fork_of_a_process_that_encoded_on_all_cores_encodes_too(tokenizer, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # as pipeline.system.process has it
    texts = ["A cat saw a dog. "] * 1000
    expected = tokens.text_ids(texts, tokenizer)
    child = os.fork()
    if not child:
        signal.alarm(60)  # the library's threads are not in a fork: who waits for them waits for ever
        os._exit(tokens.text_ids(texts, tokenizer) != expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""Token files: written in shards, resumed after a kill, kept by all that decides them, used again with their counts."""

import json
from collections import Counter

import pytest
from transformers import AutoTokenizer

from pipeline.data import shards, tokens
from pipeline.data.rows import Rows
from pipeline.models import tokenization
from pipeline.training import guards
from tests.conftest import SMALL


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer():
    made = tokenization.train(["a row of text"] * 9, 280, 64)
    tokenization.set_template(made, "chatml.jinja", "here")
    return made


def rows(number=70):
    return Rows([{"text": f"row {each} 北京 " + "x" * (each % 9)} for each in range(number)])


def test_shards_hold_what_one_file_would_and_go_on_after_a_kill(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_BATCH", 8)
    monkeypatch.setattr(shards, "_SHARD", 300)
    given, seen, told = rows(), [], []

    def encode(part):
        seen.append(len(part.kept))
        part.dropped_by_encoding["odd"] += 1
        part.truncated["end"] += 2
        if sum(seen) == 40 and len(seen) == 5:
            raise KeyboardInterrupt
        return tokens.text_pieces(part.kept, tokenizer, 16)

    with pytest.raises(KeyboardInterrupt):
        shards.encoded(given, encode, "i", tmp_path / "none", told.append)
    before = sum(seen[:4])
    found = shards.encoded(given, encode, "i", tmp_path / "none", told.append)
    assert sum(seen[5:]) < 70 - 10  # whole shards were not made again
    assert sum(seen[5:]) + before >= 70
    whole = list(tokens.pieces(given.kept, lambda row: tokens.encode_text(row, tokenizer), 16, True, Counter()))
    assert found[:] == {key: [example[key] for example in whole] for key in whole[0]}
    assert len(found.cache_files) > 2
    assert given.dropped_by_encoding["odd"] == -(-70 // 8)
    assert any(line.startswith("goes on with the tokens of row") for line in told)
    again, calls = rows(), len(seen)
    assert shards.encoded(again, encode, "i", tmp_path / "none", told.append)[:] == found[:]
    assert (len(seen), told[-1]) == (calls, "its tokens are kept from before; nothing is tokenised")
    assert again.dropped_by_encoding == given.dropped_by_encoding
    assert again.truncated == given.truncated
    assert tokens.pack(found, 32)[:] == tokens.pack(shards.encoded(rows(), encode, "", tmp_path / "none", told.append), 32)[:]


def test_rows_of_which_no_example_is_left_are_an_empty_data_set(tokenizer, tmp_path):
    found = shards.encoded(rows(), lambda part: [], "", tmp_path / "t", print)
    assert len(found) == 0
    with pytest.raises(guards.UserError, match="no row is left for training"):
        guards.learns(found, {})


def test_batches_of_texts_are_encoded_as_each_alone(tokenizer):
    texts = ["", "a row", "of 北京 <|im_end|> text\n\n", "x" * 50]
    found = tokens.text_ids(texts, tokenizer)
    assert found == [list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) for text in texts]
    tokenizer(texts, padding=True, truncation=True, max_length=2)  # leaves its settings behind
    assert tokens.text_ids(texts, tokenizer) == found
    assert [list(ids) for _, ids in tokens.documents([{"text": text} for text in texts], tokenizer)] == found


def test_a_tokenizer_s_identity_is_what_decides_its_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    same = AutoTokenizer.from_pretrained(tmp_path)
    same(["a", "b"], padding=True, truncation=True, max_length=2)
    assert tokenization.identity(same) == tokenization.identity(tokenizer)
    same.chat_template = "another"
    assert tokenization.identity(same) != tokenization.identity(tokenizer)
    other = tokenization.train(["a row of text"] * 9, 279, 64)
    assert tokenization.identity(other) != tokenization.identity(tokenizer)


def test_another_model_on_the_same_text_tokenises_nothing(run, chain, data, tmp_path):
    given = ("--data", data / "text.jsonl", *SMALL["pretrain"])
    printed = {}
    for name, more in (("a", ["--hidden_size", 16]), ("b", ["--hidden_size", 48]), ("c", ["--max_length", 32])):
        status, printed[name], err = run("pretrain", "--output", tmp_path / name, *given, *more)
        assert status == 0, err
    assert ["nothing is tokenised" in printed[name] for name in "abc"] == [False, True, False]
    records = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab"]
    assert records[0]["recipe"] == records[1]["recipe"]
    assert records[0]["tokens"] == records[1]["tokens"]
    assert f", {90 - records[0]['recipe']['kept']} held out" in printed["a"]

"""Token files: written in shards, resumed after a kill, kept by all that decides them, used again with their counts."""

import contextlib
import json
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from transformers import AutoTokenizer

from pipeline import ROOT
from pipeline.data import kept, packing, shards, tokens
from pipeline.data.rows import Rows
from pipeline.models import tokenization
from pipeline.system import cores
from pipeline.system.errors import UserError
from pipeline.training import guards
from tests.conftest import SMALL
from tests.forked import start


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
    monkeypatch.setattr(kept, "_SPAN_ROWS", 8)
    monkeypatch.setattr(shards, "_SHARD", 3000)
    monkeypatch.setattr(cores, "count", lambda: 1)  # `seen` is of this process
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
    assert packing.pack(found, 32)[:] == packing.pack(shards.encoded(rows(), encode, "", tmp_path / "none", told.append), 32)[:]


def test_on_several_cores_the_examples_and_what_is_counted_are_the_same(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "_SPAN_ROWS", 8)
    monkeypatch.setattr(shards, "_SHARD", 3000)

    def encode(part):
        part.dropped_by_encoding["first rows"] += 1
        part.too_long[str(len(part.kept))] += 1
        yield from tokens.text_pieces(part.kept[1:], tokenizer, 16)

    found = {}
    for number in (1, 3):
        monkeypatch.setattr(cores, "count", lambda number=number: number)
        given = rows()
        given.clean(given.kept, "text")
        made = shards.encoded(given, encode, "", tmp_path / str(number), print)
        found[number] = (
            made[:],
            given.dropped_by_encoding,
            given.too_long,
            [Path(file["filename"]).name for file in made.cache_files],
        )
    assert found[1] == found[3]
    assert (found[3][1], found[3][2]) == ({"first rows": 9}, {"8": 8, "6": 1})
    assert len(found[3][3]) > 2


def test_examples_that_depend_on_all_rows_are_kept_too(tmp_path):
    made, told = [], []

    def encode(part):
        made.append(len(part.kept))
        for number in range(len(part.kept)):
            part.truncated["end"] += 1
            yield {"input_ids": [number, len(part.kept)], "row": number}
        part.dropped_by_encoding["odd"] += 3

    found = []
    for _ in range(2):
        given = rows()
        dataset = shards.encoded(given, encode, "all", tmp_path / "none", told.append, by_part=False)
        found.append((dataset[:], given.truncated, given.dropped_by_encoding))
    assert found[0] == found[1]
    assert found[1][1:] == ({"end": 70}, {"odd": 3})
    assert found[1][0]["input_ids"][69] == [69, 70]
    assert (made, told) == ([70], ["its tokens are kept from before; nothing is tokenised"])


def test_a_fault_in_another_process_is_raised_as_the_first_in_order_and_nothing_is_left(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "_SPAN_ROWS", 8)
    monkeypatch.setattr(cores, "count", lambda: 2)

    def encode(part):
        if part.kept[0]["text"].startswith(("row 16", "row 24")):
            raise UserError(f"{part.kept[0]['text'][:6]} is no row", "and more")
        return tokens.text_pieces(part.kept, tokenizer, 16)

    before = psutil.Process().children()  # of other tests of this process
    with pytest.raises(UserError) as caught:
        shards.encoded(rows(), encode, "fault", tmp_path / "none", print)
    assert caught.value.faults == ("row 16 is no row", "and more")
    assert not list((tmp_path / "cache").glob("tokens-*/")), "what a fault leaves would be gone on from"
    assert psutil.Process().children() == before


def test_workers_end_with_the_process_that_started_them(tmp_path):
    program = f"""
import itertools, os, time
from pipeline.system import cores
cores.count = lambda: 2
for pid in cores.each(lambda number: time.sleep(0.05) or os.getpid(), itertools.count()):
    with open({str(tmp_path / "pids")!r}, "a") as file:
        file.write(f"{{pid}}\\n")
"""
    with start(ROOT, "-c", program) as process:
        pids = wait_for(lambda: len(found := (tmp_path / "pids").read_text().split()) > 5 and set(map(int, found)))
        process.send_signal(signal.SIGKILL)
        assert len(pids) == 2
        wait_for(lambda: not any(map(psutil.pid_exists, pids)))


def wait_for(what):
    for _ in range(400):
        with contextlib.suppress(FileNotFoundError):
            if found := what():
                return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in 20 s")


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

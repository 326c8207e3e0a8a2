"""Streamed recipes: read while a model trains, found again by a position, divided among processes, broken data told with its row."""

import gzip
import json
import os
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.data import hubs, ranges, recipe, stream, stream_recipe
from pipeline.data.stream import Place
from pipeline.system.errors import UserError
from tests.conftest import SMALL, killed_in_a_stream

FLAGS = [*SMALL["pretrain"], "--max_steps", "12", "--save_steps", "4", "--logging_steps", "2"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stream, "CHUNK", 4000)
    monkeypatch.setattr(ranges, "NEAR", 500)
    return tmp_path / "cache"


def texts(start, stop):
    return [f"row {number} of the text: " + "the cat saw the dog and ran " * (number % 4) for number in range(start, stop)]


def lines(found):
    return "".join(json.dumps({"text": text}) + "\n" for text in found)


def written(folder, sources, more=""):
    """Write a streamed recipe; `sources`: file → what else is said of it."""
    path = folder / "s.yaml"
    entries = "".join(f"  - files: {folder / name}\n    {said}\n" for name, said in sources.items())
    path.write_text(f"type: text\nstream: yes\n{more}sources:\n{entries}")
    return str(path)


def groups(path, found, size=30):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": text} for text in found]), path, row_group_size=size)


@pytest.fixture
def several(tmp_path):
    """One source of each kind, with other rows in each."""
    (tmp_path / "a.jsonl").write_text(lines(texts(0, 200)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(texts(200, 300)).encode()))
    groups(tmp_path / "c.parquet", texts(300, 400))
    (tmp_path / "d.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts(400, 450)))
    return written(tmp_path, dict.fromkeys(["a.jsonl", "b.jsonl.gz", "c.parquet", "d.csv"], "weight: 1"))


def epoch(rows, number=0, process=0, processes=1):
    """Return the texts and origins of an epoch, and the places where its chunks begin."""
    at, found, places = Place(number), [], []
    while at.epoch == number:
        places.append(at)
        chunk = rows.stream.chunk(0, at, process, processes)
        found += zip((row["text"] for row in chunk.rows.kept), chunk.origins, strict=True)
        at = chunk.next
    return found, places


def test_an_epoch_has_every_row_for_training_once_in_another_order_each_time(several):
    given = recipe.load(several)
    rows, held_out = (given.rows("text", split, 1) for split in recipe.SPLITS)
    found, places = epoch(rows)
    assert Counter(text for text, _ in found) + Counter(row["text"] for row in held_out.kept) == Counter(texts(0, 450))
    assert Counter(text for text, _ in found) == Counter(row["text"] for row in rows.kept)
    assert 0 < len(held_out.kept) < 60
    assert len(places) > 5
    again = recipe.load(several).rows("text", "train", 1)
    assert epoch(again) == (found, places)
    assert Counter(epoch(rows, 1)[0]) == Counter(found) != epoch(rows, 1)[0]
    assert epoch(rows, 1)[0] != found
    assert epoch(given.rows("text", "train", 2))[0] != found
    middle = places[len(places) // 2]
    assert again.stream.chunk(0, middle).origins == rows.stream.chunk(0, middle).origins


def test_processes_read_disjoint_parts_that_are_the_whole_together(several):
    rows = recipe.load(several).rows("text", "train", 1)
    shares = [Counter(epoch(rows, 0, process, 3)[0]) for process in range(3)]
    assert sum(shares, Counter()) == Counter(epoch(rows)[0])
    assert all(shares)
    with pytest.raises(UserError, match=r"parts can't be divided among 1000 processes"):
        rows.stream.divided(1000)


@pytest.mark.parametrize(("name", "mark"), [("book.txt", "\n\n"), ("book.txt", "\n"), ("line.txt", " ")])
def test_a_large_text_is_cut_into_documents_and_none_of_it_is_lost(tmp_path, name, mark, monkeypatch):
    monkeypatch.setattr(ranges, "LARGE", 1000)
    monkeypatch.setattr(ranges, "DOCUMENT", 300)
    words = [f"wörd{number}" for number in range(4000)]
    (tmp_path / name).write_text(mark.join(" ".join(words[start : start + 10]) for start in range(0, 4000, 10)))
    rows = recipe.load(written(tmp_path, {name: "weight: 1"}, "held_out: 0\n")).rows("text", "train", 1)
    found = [word for text, _ in epoch(rows)[0] for word in text.split()]
    assert sorted(found) == sorted(words)
    assert max(len(text) for text, _ in epoch(rows)[0]) < 1200


def test_what_is_held_out_by_name_is_never_trained_on(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(texts(0, 200)))
    (tmp_path / "test-0.jsonl").write_text(lines([*texts(500, 520), *texts(0, 7), "Row 8 of the text"]))
    given = recipe.load(written(tmp_path, {"*.jsonl": "weight: 1"}))
    rows, held_out = (given.rows("text", split, 1) for split in recipe.SPLITS)
    assert len(held_out.kept) == 28
    assert Counter(text for text, _ in epoch(rows)[0]) == Counter(texts(7, 200)) - Counter(texts(8, 9))


def test_the_sample_is_bounded_and_what_it_does_not_hold_is_held_out_by_the_same_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_recipe, "SAMPLE", 4000)
    (tmp_path / "a.jsonl").write_text(lines(texts(0, 2000)))
    given = recipe.load(written(tmp_path, {"a.jsonl": "weight: 1"}))
    rows, held_out = (given.rows("text", split, 1) for split in recipe.SPLITS)
    assert len(rows.kept) + len(held_out.kept) < 300
    monkeypatch.undo()
    whole = recipe.from_data(str(tmp_path / "a.jsonl"), "text")
    assert Counter(text for text, _ in epoch(rows)[0]) == Counter(row["text"] for row in whole.rows("text", "train", 1).kept)


@pytest.mark.parametrize(
    "more", [(), ("--objective", "mlm", "--gradient_accumulation_steps", "2"), ("--dataloader_num_workers", "1")]
)
def test_a_killed_run_ends_with_the_same_weights_log_and_record(run, tmp_path, more):
    (tmp_path / "a.jsonl").write_text(lines(texts(0, 300)))
    groups(tmp_path / "c.parquet", texts(300, 500))
    given = ["--recipe", written(tmp_path, {"a.jsonl": "share: 0.7", "c.parquet": "share: 0.3"}), *FLAGS, *more]
    found = killed_in_a_stream(run, given, tmp_path)[1]["recipe"]
    assert found["stream"]["known_by"] == "names, sizes and times of files"
    assert [source for source, _ in found["sources"]] == [f"{tmp_path.name}/a.jsonl", f"{tmp_path.name}/c.parquet"]
    assert [item["asked"] for item in found["mixture"]] == [0.7, 0.3]
    assert all(abs(item["got"] - item["asked"]) < 0.1 for item in found["mixture"]), "a hundred rows divide no finer"


def test_going_on_reads_one_chunk_whatever_was_looked_at_before(tmp_path, monkeypatch):
    """The checks before the first step read the first rows."""
    from types import SimpleNamespace

    from pipeline.data import tokens
    from pipeline.models import tokenization
    from pipeline.training.streamed import Streamed

    (tmp_path / "a.jsonl").write_text(lines(texts(0, 1000)))
    rows = recipe.load(written(tmp_path, {"a.jsonl": "weight: 1"})).rows("text", "train", 1)
    tokenizer = tokenization.train((row["text"] for row in rows.kept), 300, 64)
    arguments = SimpleNamespace(train_batch_size=4, world_size=1, max_steps=200, gradient_accumulation_steps=1)

    def opened():
        return Streamed(rows.stream, lambda part: tokens.text_pieces(part.kept, tokenizer, 64), 0, arguments)

    whole = opened()
    found = [whole[number] for number in range(700)]
    (tmp_path / "stream-0.json").write_text(found[599]["position"])
    again, read, chunk = opened(), [], stream.Stream.chunk
    monkeypatch.setattr(stream.Stream, "chunk", lambda self, *given: read.append(given) or chunk(self, *given))
    again.resume(tmp_path)
    assert again[0] == found[0]
    read.clear()
    assert again[600] == found[600]
    assert len(read) == 1
    assert [again[number] for number in range(601, 700)] == found[601:]
    assert again[0] == found[0]


def test_a_stage_that_cannot_stream_and_a_run_without_an_end_are_told_at_once(run, chain, tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(texts(0, 9)))
    given = ["--recipe", written(tmp_path, {"a.jsonl": "weight: 1"}), "--output", tmp_path / "out"]
    status, _, err = run("sft", *given, "--parent", chain / "pretrain")
    assert (status, "stream: sft reads its rows from disk; pretrain can stream" in err) == (2, True)
    status, _, err = run("pretrain", *given)
    assert (status, "stream: max_steps is needed, since a stream has no end" in err) == (2, True)
    status, _, err = run("pretrain", *given, "--max_steps", "3", "--flops", "1e9")
    assert (status, "stream: flops can't be known before a stream is read" in err) == (2, True)
    with pytest.raises(UserError, match="deduplicate: a stream forgets what it read"):
        recipe.load(written(tmp_path, {"a.jsonl": "weight: 1"}, "deduplicate: true\n"))


def refused(path):
    with pytest.raises(UserError) as error:
        epoch(recipe.load(path).rows("text", "train", 1))
    assert all("\n" not in fault for fault in error.value.faults)
    return list(error.value.faults)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [("a.jsonl", lines(texts(0, 300)) + '{"text": 5}\n' + lines(texts(0, 9)), "{}:301: text is int, not text"),
     ("a.jsonl", lines(texts(0, 300)) + "{\n", "{}:301: not JSON"),
     ("a.jsonl", lines(texts(0, 30)).encode() + b'{"text": "\xff"}\n', "{}:31: not UTF-8"),
     ("a.jsonl.gz", gzip.compress(lines(texts(0, 3000)).encode())[:-900], "{}: can't be read after row "),
     ("a.json", json.dumps([{"text": "a"}]), "{}: is one JSON value, which can't be streamed"),
     ("a.jsonl", "", "a.jsonl: is empty; it holds no row"),
     ("a.jsonl", "\n\n", "a.jsonl: is empty; it holds no row"),
     ("a.jsonl.gz", b"", "a.jsonl.gz: is empty; it holds no row"),
     ("a.parquet", b"PAR1", "{}: not parquet")],
)  # fmt: skip
def test_broken_data_is_one_line_with_file_and_row(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    (fault,) = refused(written(tmp_path, {name: "weight: 1"}))
    assert fault.startswith(said.format(tmp_path / name)), fault


def test_each_source_without_a_row_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(texts(0, 300)))
    groups(tmp_path / "b.parquet", [])
    (tmp_path / "c.jsonl").write_text("")
    assert refused(written(tmp_path, dict.fromkeys(["a.jsonl", "b.parquet", "c.jsonl"], "weight: 1"))) == [
        "b.parquet: is empty; it holds no row", "c.jsonl: is empty; it holds no row",
    ]  # fmt: skip


def test_a_broken_row_group_is_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    groups(path, texts(0, 3000), 1000)
    whole = path.read_bytes()
    path.write_bytes(whole[:9000] + b"\0" * 9000 + whole[18000:])
    assert refused(written(tmp_path, {"a.parquet": "weight: 1"}))[0].startswith(f"{path}: can't be read after row ")


def test_a_file_that_changes_while_it_is_read_ends_the_run(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(texts(0, 300)))
    given = recipe.load(written(tmp_path, {"a.jsonl": "weight: 1"}))
    rows, before = given.rows("text", "train", 1), given.digest("text")
    path.write_text(lines(texts(1, 301)))
    os.utime(path, ns=(1, 1))
    assert given.digest("text") != before
    with pytest.raises(UserError, match=r"a\.jsonl: was changed while it was read"):
        epoch(rows)


def test_a_hub_that_fails_is_asked_again_and_then_told(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(lines(texts(0, 300)))
    rows = recipe.load(written(tmp_path, {"a.jsonl": "weight: 1"})).rows("text", "train", 1)
    whole, waited = epoch(rows), []
    monkeypatch.setattr(hubs.time, "sleep", waited.append)
    read = ranges.read

    def failing(times):
        left = [times]

        def broken(*given):
            for raw in read(*given):
                left[0] -= 1
                if left[0] == 0:
                    raise ConnectionError("connection reset")
                yield raw

        return broken

    monkeypatch.setattr(ranges, "read", failing(101))
    assert epoch(rows) == whole
    assert waited == [5.0]
    monkeypatch.setattr(ranges, "read", lambda *_: (_ for _ in ()).throw(ConnectionError("connection reset")))
    with pytest.raises(UserError, match=r"a\.jsonl: the hub failed: connection reset; run the same command again"):
        epoch(rows)


def test_a_checkpoint_of_chunks_of_another_size_is_refused(tmp_path):
    """It would go on with other rows."""
    from types import SimpleNamespace

    from pipeline.training import streamed

    at = streamed._file(tmp_path, 0)
    held = SimpleNamespace(processes=1)
    at.write_text(json.dumps({"next": 3, "processes": 1, "chunk": stream.CHUNK, "pools": []}))
    assert json.loads(streamed.Streamed.resume(held, tmp_path))["next"] == 3
    at.write_text(json.dumps({"next": 3, "processes": 1, "pools": []}))
    with pytest.raises(UserError, match="chunks of another size by another version; start the stage anew"):
        streamed.Streamed.resume(held, tmp_path)

"""Data of any size: memory that does not grow with it, the speed of tokenising, and text that is tokenised once.

    python -m pytest -m measured tests/test_memory.py -s

MEGABYTES=1000 names the larger size (40 where nobody says another); 10 is what it is held against.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow
import pyarrow.parquet
import pytest

from pipeline import tasks
from pipeline.data import ranges, recipe, shards, shown, stream, tokens
from pipeline.data.rows import Rows
from pipeline.models import tokenization
from pipeline.system import cores
from pipeline.training.streamed import Streamed
from tests.conftest import SMALL, command

pytestmark = pytest.mark.measured
MEGABYTES = int(os.environ.get("MEGABYTES", "40"))
GROWTH = 150e6  # bytes


def text(megabytes, seed=0):
    """Yield stories of the world with other names and numbers each time, a paragraph each, so much of them in all."""
    stories = [row["text"] for row in recipe.load("world").rows("text", "train", 42).kept[:2000]]
    rng, left = random.Random(seed), megabytes * 1_000_000
    while left > 0:
        words = rng.choice(stories).split(" ")
        words[rng.randrange(len(words))] = f"{rng.choice(words)}{rng.randrange(100_000)}"
        paragraph = " ".join(words)
        left -= len(paragraph) + 1
        yield paragraph


def rows_of(name, megabytes):
    """Yield rows of the type that is read from a file of a name, of so much text."""
    for number, paragraph in enumerate(text(megabytes)):
        asked, _, said = paragraph.partition(". ")
        yield {
            "chats": {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said or "Yes."}]},
            "thumbs": {"prompt": asked, "completion": said or "Yes.", "label": number % 2 == 0},
            "labels": {"text": paragraph, "label": "even" if number % 2 else "odd"},
            "pairs": {"prompt": asked, "chosen": said or "Yes.", "rejected": said + " And so on."},
            "ranked": {"prompt": asked, "chosen": said or "Yes.", "rejected": said + " And so on."},
            "asked": {"prompt": asked},
        }.get(name, {"text": paragraph})


def written(path, megabytes):
    """Write rows as JSON lines or Parquet, or their text with blank lines or in one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = rows_of(path.stem, megabytes)
    if path.suffix == ".parquet":
        schema = pyarrow.schema({"text": pyarrow.string()})
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            while part := list(itertools.islice(rows, 10_000)):
                writer.write_table(pyarrow.Table.from_pylist(part, schema))
        return path
    with path.open("w") as file:
        for row in rows:
            file.write(
                json.dumps(row) + "\n" if path.suffix == ".jsonl" else row["text"] + (" " if "line" in path.stem else "\n\n")
            )
    return path


def anonymous(process):
    """Return the anonymous memory of a process and all below it, in bytes; what forks share counts once."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))
    return total


def measured(folder, data, *more, stage="pretrain"):
    """Run a stage; return peak anonymous memory, in bytes, and the lines printed, each with its seconds and those of CPU until it."""
    return watched(command(stage, ["--data", data, "--output", folder, *SMALL.get(stage, []), *more]), folder.parent / "cache")


def watched(words, cache):
    """Run a command with a cache folder; return what `measured` does."""
    began = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"CACHE": str(cache)})
    peak, lines = 0, []
    whole = psutil.Process(process.pid)

    def read():
        for line in process.stdout:
            with contextlib.suppress(psutil.NoSuchProcess):
                spent = whole.cpu_times()
            lines.append(
                (time.monotonic() - began, spent.user + spent.system + spent.children_user + spent.children_system, line)
            )

    reader = threading.Thread(target=read)
    reader.start()
    while process.poll() is None:
        try:
            peak = max(peak, anonymous(whole))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    reader.join()
    assert process.wait() == 0, lines
    return peak, lines


FILES = ["rows.jsonl", "book.txt", "line.txt", "rows.parquet"]  # of texts
PLACES = ["--max_length", "256", "--per_device_train_batch_size", "2"]
BASE = {"labels": ["--objective", "mlm"]}  # file → how the model is made that its stage begins with
SFT = ("pairs", "ranked", "thumbs", "asked")  # files whose stage begins with a chat model
STAGES = {  # file → stage and its flags
    "chats.jsonl": ("sft", ["--chat_template", "chatml.jinja"]),
    "thumbs.jsonl": ("kto", []),
    "pairs.jsonl": ("dpo", []),
    "ranked.jsonl": ("reward", []),
    "asked.jsonl": ("rlhf", ["--max_completion_length", "8", "--rewards", "{length: {weight: 1.0, at_most: 8}}"]),
    "labels.jsonl": ("finetune", ["--task", "classification", "--patience", "1"]),
    "sentences.txt": ("pretrain", ["--objective", "mlm_nsp"]),
    "messy.jsonl": ("curate", []),
}


@pytest.mark.parametrize("name", [*FILES, *STAGES])
def test_memory_does_not_grow_with_the_data(tmp_path, name):
    peaks, (stage, more) = {}, STAGES.get(name, ("pretrain", []))
    kind = Path(name).stem
    if stage not in ("pretrain", "curate"):
        parent = tmp_path / "base"
        measured(parent, written(tmp_path / "base.jsonl", 1), *PLACES, "--max_steps", "1", *BASE.get(kind, []))
        if kind in SFT:
            chats, flags = written(tmp_path / "chats.jsonl", 1), STAGES["chats.jsonl"][1]
            measured(tmp_path / "sft", chats, "--parent", parent, *PLACES, "--max_steps", "1", *flags, stage="sft")
            parent = tmp_path / "sft"
        more = ["--parent", parent, *PLACES, *more]
    if stage != "curate":
        more = [*more, "--max_steps", "1"]
    for size in (10, MEGABYTES):
        path = written(tmp_path / f"{size}" / name, size)
        began = time.monotonic()
        peaks[size], lines = measured(tmp_path / f"{size}" / "out", path, *more, stage=stage)
        print(f"\n{name}, {size} MB: {peaks[size] / 1e6:,.0f} MB of anonymous memory, {time.monotonic() - began:.0f} s; lines:")
        print("".join(f"  {at:6.1f} s {line}" for at, _, line in (lines if len(lines) <= 24 else [*lines[:16], *lines[-8:]])))
        shutil.rmtree(tmp_path / f"{size}")
    assert peaks[MEGABYTES] - peaks[10] < GROWTH


READ = """
import os, sys
from pipeline.data import recipe

rows = recipe.from_data(sys.argv[1], "text").rows("text", "train", 42)
print(len(rows.kept) + rows.held_out, sum(os.times()[:4]))  # of CPU, that of its workers included
"""


@pytest.mark.parametrize("name", FILES)
def test_a_larger_file_is_read_in_the_same_memory(tmp_path, name):
    peaks, rows, seconds = {}, {}, {}  # seconds: of CPU
    for size in (10, MEGABYTES):
        path = written(tmp_path / f"{size}" / name, size)
        peaks[size], lines = watched([sys.executable, "-c", READ, path], tmp_path / f"{size}" / "cache")
        found, spent = lines[-1][-1].split()
        rows[size], seconds[size] = int(found), float(spent)
        shutil.rmtree(tmp_path / f"{size}")
    more, took = MEGABYTES - 10, seconds[MEGABYTES] - seconds[10]
    print(f"\n{name} is read: " + ", ".join(f"{size} MB in {peak / 1e6:,.0f} MB" for size, peak in peaks.items()), end="; ")
    print(f"{more / took:.1f} MB and {(rows[MEGABYTES] - rows[10]) / took:,.0f} rows a second of CPU")
    assert peaks[MEGABYTES] - peaks[10] < GROWTH


def test_a_stream_is_found_again_at_row_1000000_by_reading_one_chunk(tmp_path, monkeypatch):
    from torch.utils.data import SequentialSampler

    wanted, length = 1_000_000, 200  # rows, and bytes of each line
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(wanted + 20_000):
            line = f"Row {number} of a stream: " + "ab cd " * 40
            file.write(json.dumps({"text": line[: length - 13]}) + "\n")
    assert (tmp_path / "rows.jsonl").stat().st_size == length * (wanted + 20_000)
    (tmp_path / "stream.yaml").write_text(f"type: text\nstream: yes\nsources:\n  - files: {tmp_path}/rows.jsonl\n")
    rows = recipe.load(str(tmp_path / "stream.yaml")).rows("text", "train", 1)
    tokenizer = tokenization.train((row["text"] for row in rows.kept[:500]), 400, 64)
    arguments = SimpleNamespace(train_batch_size=8, world_size=1, max_steps=wanted, gradient_accumulation_steps=1)

    def opened():
        return Streamed(rows.stream, lambda part: tokens.text_pieces(part.kept, tokenizer, 64), 64, arguments)

    position = json.loads(opened()[0]["position"])  # and the one that a checkpoint has after so many rows
    position["next"], position["pools"][0]["place"] = wanted, [0, wanted * length // ranges.NEAR, 0]
    (tmp_path / "stream-0.json").write_text(json.dumps(position))
    read, chunk = [], stream.Stream.chunk
    monkeypatch.setattr(stream.Stream, "chunk", lambda self, *given: read.append(given) or chunk(self, *given))
    seconds = {"at the beginning": [], f"at row {wanted:,}": []}
    for at, name in ((0, "at the beginning"), (wanted, f"at row {wanted:,}")) * 3:
        data, began = opened(), time.process_time()
        if at:
            data.resume(tmp_path)
        number = next(itertools.islice(iter(SequentialSampler(data)), at, None))  # which the trainer passes by, too
        read.clear()
        assert data[number]["row"]
        seconds[name].append(time.process_time() - began)
        assert len(read) == 1
    print(
        "\nseconds of CPU to the first row of a stream, one chunk read: "
        + str({name: [round(one, 2) for one in found] for name, found in seconds.items()})
    )


def test_the_same_text_with_another_model_is_not_tokenised_and_starts_as_soon_as_a_single_row(tmp_path):
    path, single = written(tmp_path / "rows.jsonl", MEGABYTES), tmp_path / "one.jsonl"
    single.write_text("".join(json.dumps({"text": f"One row, {number}."}) + "\n" for number in range(2)))
    measured(tmp_path / "first", path, "--max_steps", "1")
    measured(tmp_path / "one", single, "--max_steps", "1")
    seconds = {"same text": [], "single row": []}
    for repeat in range(3):
        for name, data in (("same text", path), ("single row", single)):
            lines = measured(tmp_path / f"{name}{repeat}", data, "--max_steps", "1", "--hidden_size", str(48 + 16 * repeat))[1]
            assert any("nothing is tokenised" in line for *_, line in lines)
            seconds[name].append(next(one[:2] for one in lines if " parameters, " in one[-1]))
    more = [
        statistics.median(one[at] for one in seconds["same text"]) - statistics.median(one[at] for one in seconds["single row"])
        for at in (0, 1)
    ]
    print(
        f"\nthe same {MEGABYTES} MB again with another model: {more[0]:+.2f} s over a single row, {more[1]:+.2f} s of CPU; "
        f"nothing tokenised ({seconds})"
    )
    assert more[1] <= 0.5  # of CPU, whatever else the machine does


def encoders():
    """Return by type rows, as they come from a file, and what a stage makes examples of them with."""
    text = list(rows_of("rows", 3))
    chats = list(rows_of("chats", 1.4))  # some 5,000
    words = tokenization.train((row["text"] for row in text[:500]), 4096, 256)
    tokenization.set_template(words, "chatml.jinja", "here")
    pieces = tokenization.train((row["text"] for row in text[:500]), 2048, 256, "wordpiece")
    task = tasks.load("classification")

    def by_row(encode):
        return lambda part: tokens.pieces(part.kept, encode, 256, False, part.dropped_by_encoding, part.too_long)

    def answers(row):
        asked, said = row["messages"]
        return {"prompt": [asked], "chosen": [said], "rejected": [said | {"content": said["content"] + " Or so."}]}

    pairs = [answers(row) for row in chats]
    rated = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in pairs]
    labelled = [row | {"label": "ab"[number % 2]} for number, row in enumerate(text[: len(chats)])]
    return {
        "text": (text, lambda part: tokens.text_pieces(part.kept, words, 256)),
        "conversations": (chats, by_row(lambda row: shown.conversation(row["messages"], words))),
        "pairs": (pairs, by_row(lambda row: shown.pair(row, words))),
        "rated": (rated, by_row(lambda row: shown.answers(row, words, ["completion"]))),
        "labels": (labelled, lambda part: task.examples(part, pieces, 256, ["a", "b"])),
    }


def one_by_one(path, rows, tokenizer):
    """Write what `text_pieces` gives, as it was done before: a call a row, a write a row."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    ids = datasets.List(datasets.Value("int32"))
    features = datasets.Features({"input_ids": ids, "labels": ids, "row": datasets.Value("int32")})
    with ArrowWriter(path=str(path), features=features) as writer:
        for number, row in enumerate(rows):
            for example in tokens.pieces([row], lambda row: tokens.encode_text(row, tokenizer), 256, True, Counter()):
                writer.write(example | {"row": number})
        writer.finalize()


def test_tokenising_text_is_twice_as_fast_as_row_by_row(tmp_path):
    rows = list(rows_of("rows", 12))
    tokenizer = tokenization.train((row["text"] for row in rows[:500]), 4096, 256)
    seconds = {"ours": [], "row by row": []}
    for repeat in range(3):
        for name, make in (
            ("ours", lambda path: shards.encoded(Rows(rows), lambda part: tokens.text_pieces(part.kept, tokenizer, 256), "", path, print)),
            ("row by row", lambda path: one_by_one(path, rows, tokenizer)),
        ):  # fmt: skip
            began = time.perf_counter()
            make(tmp_path / f"{name}{repeat}")
            seconds[name].append(time.perf_counter() - began)
    times = statistics.median(seconds["row by row"]) / statistics.median(seconds["ours"])
    print(f"\ntext: {times:.2f} times as fast as row by row on {cores.count()} cores")
    assert times >= (2 if cores.count() > 1 else 1.3)  # one core spends it all on the tokenizer


def test_tokenising_is_as_fast_as_the_library_s_own_map(tmp_path):
    import datasets

    workers, slow = cores.count(), []
    for name, (rows, encode) in encoders().items():
        (tmp_path / name).mkdir()
        kept = Rows()
        kept.clean(
            rows,
            {"pairs": "preference", "rated": "feedback", "labels": "labels", "conversations": "messages"}.get(name, "text"),
        )
        datasets.Dataset.from_list(list(kept.kept)).to_parquet(tmp_path / name / "rows.parquet")
        given = datasets.Dataset.from_parquet(str(tmp_path / name / "rows.parquet"), cache_dir=str(tmp_path / "hf"))

        def library(batch, encode=encode):
            one_by_one = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
            made = list(encode(Rows(one_by_one)))
            return {key: [row[key] for row in made] for key in made[0]}

        def by_map(path, given=given, library=library):
            how = {"batched": True, "remove_columns": given.column_names, "load_from_cache_file": False}
            return given.map(library, cache_file_name=str(path), num_proc=workers if workers > 1 else None, **how)

        def ours(path, kept=kept, encode=encode):
            return shards.encoded(kept, encode, "", path, print)

        seconds = {make: [] for make in (ours, by_map)}
        for repeat in range(3):
            for make, found in seconds.items():
                began = time.perf_counter()
                made = make(tmp_path / name / f"{make.__name__}{repeat}.arrow")
                found.append(time.perf_counter() - began)
                assert len(made) >= len(kept.kept)
        mine, theirs = (statistics.median(found) for found in seconds.values())
        ids = [column for column in made.column_names if column.endswith("_ids")]
        number = sum(len(row[column]) for row in made for column in ids)
        print(
            f"\n{name}: {number / mine:,.0f} tokens and {len(kept.kept) / mine:,.0f} rows a second on {workers} cores, "
            f"{theirs / mine:.2f} of what map gives"
        )
        if mine > theirs / 0.9:
            slow.append(name)
    assert not slow

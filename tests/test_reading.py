"""A pass over raw sources: the same bytes on any number of cores, and after a kill nothing that was read is read again."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.data import documents, files, parquet, reading, recipe
from pipeline.system import cache, cores
from pipeline.system.errors import WorldError

BLOCK, MARKED = 2_000, 20_000  # bytes of a block, and between two marks
SMALL = [(files, "_BYTES", BLOCK), (parquet, "BYTES", BLOCK), (documents, "_CHUNK", BLOCK), (documents, "LARGE", 5_000),
         (documents, "DOCUMENT", 400), (reading, "_MARKED", MARKED)]  # fmt: skip
RUN = f"""
import sys, time
from pipeline.data import documents, files, parquet, reading, recipe, split
from pipeline.system import cores
for module, name, value in {[(module.__name__, name, value) for module, name, value in SMALL]!r}:
    setattr(sys.modules[module], name, value)
cores.count = lambda: int(sys.argv[3])
take, mark = reading._take, split.Sides.mark
reading._take = lambda *given: (time.sleep(0.003), take(*given))
split.Sides.mark = lambda *given, **more: (mark(*given, **more), print("marked", flush=True))
recipe.load(sys.argv[1]).rows(sys.argv[2], "train", 1)
print("done", flush=True)
"""


@pytest.fixture
def small(monkeypatch):
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)


def said(number):
    return f"Row {number} of many: " + " ".join(str(number * k % 977) for k in range(1, 12))


def text(folder):
    """Write a recipe of texts in all kinds of files, with duplicates, a weight and a file that is held out by name."""
    data = folder / "data"
    data.mkdir()
    lines = [json.dumps({"text": said(number % 700), "source": "here"}) + "\n" for number in range(900)]
    (data / "a.jsonl").write_text("".join(lines))
    with gzip.open(data / "b.jsonl.gz", "wt") as file:
        file.writelines(lines[300:] + [json.dumps({"text": said(number)}) + "\n" for number in range(1000, 1300)])
    rows = [{"text": said(number)} for number in range(2000, 2600)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data / "c.parquet", row_group_size=250)
    (data / "d.txt").write_bytes("\ufeffÄpfel. ".encode() + "\n\n".join(map(said, range(3000, 3500))).encode())
    (data / "e.csv").write_text("text\n" + "".join(f'"{said(number)}"\n' for number in range(4000, 4400)))
    for number in range(40):
        (data / f"f{number:02}.md").write_text(f"# Small\n\n{said(5000 + number)}\n")
    (data / "g.txt").write_text(" ".join(map(said, range(6000, 6300))))
    (data / "validation.jsonl").write_text("".join(lines[100:130]))
    (folder / "own.yaml").write_text(
        f"type: text\ndeduplicate: true\nsources:\n  - files: {data}\n  - files: {data}/a.jsonl\n    weight: 0.5\n"
    )
    return "text"


def one_group(folder):
    """Write a recipe of a few prompts, all of which are on one side by their hash, so that a whole group moves at last."""
    rows = [{"prompt": f"2 {number % 2}", "chosen": f"a{number} " + "x" * 60, "rejected": "b"} for number in range(1500)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.yaml").write_text(f"type: preference\nheld_out: 0.0001\nsources:\n  - files: {folder}/a.jsonl\n")
    return "preference"


def trees(folder):
    """Write a recipe of conversations, of which trees of messages come late, each larger than a block."""
    rows = [{"messages": [{"role": "user", "content": said(n)}, {"role": "assistant", "content": "Yes."}]} for n in range(800)]
    for tree in range(40):
        for n in range(20):
            given = {"role": "assistant" if n % 2 else "prompter", "text": said(tree * 20 + n), "rank": 0}
            rows.append(
                {"message_tree_id": f"t{tree}", "message_id": f"{tree}/{n}", "parent_id": f"{tree}/{n - 1}" if n else None}
                | given
            )
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.yaml").write_text(f"type: messages\nsources:\n  - files: {folder}/a.jsonl\n")
    return "messages"


def entry(place):
    """Return the bytes of the entry that a pass made."""
    (made,) = place.glob("rows-*/")
    return {path.name: path.read_bytes() for path in sorted(made.iterdir())}


def whole(path, type, place, monkeypatch, number):
    """Return the files of a pass on so many cores, and how many rows were parsed in this process."""
    monkeypatch.setenv("CACHE", str(place))
    monkeypatch.setattr(cores, "count", lambda: number)
    parsed, rows = [], files.Block.rows
    with monkeypatch.context() as patch:
        patch.setattr(files.Block, "rows", lambda self, faults: (parsed.append(1) or raw for raw in rows(self, faults)))
        recipe.load(str(path)).rows(type, "train", 1)
    cache._held.clear()
    return entry(place), len(parsed)


@pytest.mark.parametrize("make", [text, one_group, trees])
def test_a_pass_gives_the_same_bytes_on_any_number_of_cores(tmp_path, monkeypatch, small, make):
    type = make(tmp_path)
    found = [whole(tmp_path / "own.yaml", type, tmp_path / f"{n}", monkeypatch, n)[0] for n in (1, 2, 5)]
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == ["counts.json", "held_out.arrow", "train.arrow", "whole.json"]


@pytest.mark.parametrize("make", [text, one_group, trees])
def test_a_pass_that_is_killed_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch, small, make):
    type, path, place = make(tmp_path), tmp_path / "own.yaml", tmp_path / "killed"
    wanted, every = whole(path, type, tmp_path / "at-once", monkeypatch, 1)
    rng = random.Random(1)
    for kill in range(3):
        words = [sys.executable, "-c", RUN, str(path), type, str(1 + kill % 2)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"CACHE": str(place)}) as process:
            assert "marked\n" in process.stdout  # which reads on to the first mark that it comes to
            time.sleep(rng.random() * 0.02)  # at most seven blocks on, so that three kills never reach the end
            process.send_signal(signal.SIGKILL)
    (left,) = place.glob("rows-*.partial")
    at = json.loads((left / "pass.json").read_text())["done"]
    found, again = whole(path, type, place, monkeypatch, 1)
    assert found == wanted
    before = sum(at["formats"].values())  # rows before the last mark, of at most 200 bytes each
    assert before > 3 * MARKED // 200
    assert again == every - before  # none of them is parsed again
    print(
        f"\n{make.__name__}: {every} rows, {again} of them read after three kills, from source {at['source']} {at['place']} on"
    )


def test_a_worker_that_the_system_kills_is_told_in_a_line_and_the_same_command_goes_on(tmp_path, monkeypatch, small):
    type = text(tmp_path)
    wanted, _ = whole(tmp_path / "own.yaml", type, tmp_path / "at-once", monkeypatch, 1)
    part, here = reading._part, os.getpid()

    def killed(recipe, source, seed, block):
        if os.getpid() != here and block.path.name == "c.parquet":
            os.kill(os.getpid(), signal.SIGKILL)
        return part(recipe, source, seed, block)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "_part", killed)
        with pytest.raises(WorldError, match="2 processes that work on the rows was killed, most likely because the memory"):
            whole(tmp_path / "own.yaml", type, tmp_path / "killed", monkeypatch, 2)
    assert whole(tmp_path / "own.yaml", type, tmp_path / "killed", monkeypatch, 2)[0] == wanted

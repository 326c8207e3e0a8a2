"""While rows are read a line says so: the first within two seconds of the first row, then one every ten, by a clock of rows."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.data import doubts, files, kept, tokens, types
from pipeline.system import cores, process
from tests.conftest import SMALL
from tests.test_finetune import flags as task_flags
from tests.test_tasks import parent

ROWS, SECOND = 6000, 500  # rows, and how many of them take a second whenever they are read or decoded


@pytest.fixture
def said(monkeypatch, tmp_path):
    """The seconds of the clock at which a line was printed, and before it that of the first row."""
    clock, found = [0.0], []

    def passed(rows):
        clock[0] += rows / SECOND

    def slow(block, faults):
        for raw in read(block, faults):
            found[:] = found or [clock[0]]
            passed(1)
            yield raw

    def decoded(batch):
        passed(batch.num_rows)
        return decode(batch)

    read, decode = files.Block.rows, kept._rows
    monkeypatch.setattr(files.Block, "rows", slow)
    monkeypatch.setattr(files, "_BYTES", 1000)  # many blocks
    monkeypatch.setattr(kept, "_rows", decoded)
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(process, "print", lambda *_, **__: found.append(clock[0]), raising=False)
    monkeypatch.setattr(cores, "count", lambda: 1)  # the clock is of this process
    for module, name in ((kept, "_ROWS"), (kept, "_SPAN_ROWS"), (tokens, "_BATCH")):
        monkeypatch.setattr(module, name, 20)
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    return found


def check(said):
    gaps = [after - before for before, after in itertools.pairwise(said)]
    assert len(gaps) > 5
    assert gaps[0] <= 2
    assert max(gaps) <= 12


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        ("causal", "The {0} of {1} saw it."),
        pytest.param("mlm_nsp", "The {0} saw it. And {1} ran. It was {0}.", marks=pytest.mark.slow),
        ("causal", ""),
    ],
)
def test_no_pass_over_text_is_silent(run, said, tmp_path, objective, text):
    """An objective that reads the text as a whole, and rows that are dropped, too."""
    rows = [{"text": text.format(number, 7 * number)} for number in range(ROWS)]
    rows += [{"text": f"a {number}"} for number in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*SMALL["pretrain"], "--data", tmp_path / "a.jsonl", "--objective", objective, "--vocab_size", "500"]
    status, _, err = run("pretrain", *flags, "--max_steps", "1", "--output", tmp_path / "out")
    assert status == 0, err
    check(said)


def test_no_pass_over_the_rows_of_a_task_is_silent(run, said, tmp_path):
    source = parent(tmp_path / "parent", "mlm")
    flags = task_flags("classification", {"mlm": source}, tmp_path)
    data = Path(flags[flags.index("--data") + 1])
    first = [json.loads(line) for line in data.read_text().splitlines()]
    with data.open("w") as file:
        for number in range(ROWS):
            row = first[number % len(first)]
            file.write(json.dumps(row | {"text": f"{row['text']} {number}"}) + "\n")
    more = ["--patience", "1", "--validation", "0.2", "--max_steps", "1", "--output", tmp_path / "out"]
    status, _, err = run("finetune", *flags, *more)
    assert status == 0, err
    check(said)


def test_what_is_held_in_memory_for_doubts_is_bounded_in_characters():
    read = []

    def rows():
        for number in range(1000):
            read.append(number)
            yield {"text": f"{number} " + "x" * 100_000}

    assert not doubts.of(rows(), types.load("text"))
    assert len(read) == 100


def test_what_rows_can_hardly_mean_is_found_once_and_told_each_time(run, tmp_path, monkeypatch):
    from pipeline.training import loop

    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"The {n} of \ufffd it."}) + "\n" for n in range(40))
        + "".join(json.dumps({"text": f"The {n} saw it."}) + "\n" for n in range(60))
    )
    looked, of = [], doubts.of
    monkeypatch.setattr(loop.doubts, "of", lambda *given: looked.append(1) or of(*given))
    for number in range(2):
        flags = [*SMALL["pretrain"], "--data", tmp_path / "a.jsonl", "--max_steps", "1", "--output", tmp_path / f"{number}"]
        status, said, err = run("pretrain", *flags)
        assert status == 0, err
        assert "rows hold the replacement character" in said
    assert len(looked) == 1

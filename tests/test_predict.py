"""`make predict`: a line for each row in order, equal to the stage's own predictions; faults by file and row; bounded memory."""

import json

import pytest

from pipeline.commands import predict as command
from pipeline.data import types
from tests.test_finetune import flags, write_rows

ASKED = {
    "classification": ("text",), "multilabel_classification": ("text",), "regression": ("text",),
    "question_answering": ("context", "question"), "token_classification": ("tokens",),
    "sequence_to_sequence": ("source",), "similarity": ("text", "text_pair"),
}  # fmt: skip


def finetuned(run, parents, folder, name):
    folder.mkdir()
    status, _, err = run("finetune", *flags(name, parents, folder))
    assert status == 0, err
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ASKED)
def test_unlabelled_rows_get_what_the_stage_said_of_them(run, parents, tmp_path, monkeypatch, name):
    folder = finetuned(run, parents, tmp_path / "runs", name)
    known = lines(folder / "out" / "predictions.jsonl")
    rows = [{key: line["row"][key] for key in ASKED[name]} for line in known]
    data = write_rows(tmp_path / "new.jsonl", rows)
    monkeypatch.setattr(command, "_PART", 2)
    status, out, err = run("predict", "--runs", folder, "--node", "out", "--data", data, "--output", tmp_path / "said.jsonl")
    assert status == 0, err
    assert f"{len(rows):,} rows by out" in out
    found = lines(tmp_path / "said.jsonl")
    assert [line["row"] for line in found] == rows
    assert [line["origin"] for line in found] == [f"{data}:{number}" for number in range(1, len(rows) + 1)]
    for mine, theirs in zip(found, known, strict=True):
        assert mine["said"].keys() == theirs["said"].keys()
        for key, value in mine["said"].items():
            assert (
                value == pytest.approx(theirs["said"][key], abs=1e-4)
                if not isinstance(value, str)
                else value == theirs["said"][key]
            )


def test_rows_that_ask_nothing_and_broken_ones(run, parents, tmp_path):
    folder = finetuned(run, parents, tmp_path / "runs", "classification")
    text = tmp_path / "lines.txt"
    text.write_text("The cat saw it.\n\nThe dog was glad.\n")
    status, _, err = run("predict", "--runs", folder, "--data", text)
    assert status == 0, err
    output = folder / "out-predictions.jsonl"
    assert [line["origin"] for line in lines(output)] == [f"{text}:1", f"{text}:3"]
    assert sum(lines(output)[0]["said"]["probabilities"].values()) == pytest.approx(1, abs=1e-4)

    labelled = write_rows(tmp_path / "some.jsonl", [{"text": "a cat", "label": -1}, {"text": " ", "label": "x"}])
    status, out, _ = run("predict", "--runs", folder, "--data", labelled)
    assert status == 0
    assert "not read: empty text (1)" in out
    assert [line["said"] is None for line in lines(output)] == [False, True]
    assert lines(output)[1]["reason"] == "empty text"

    before = output.read_bytes()
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": 3}\n{"words": "b"}\nnothing\n')
    status, _, err = run("predict", "--runs", folder, "--data", broken)
    assert status == 2
    assert f"{broken}:2: text is int, not text" in err
    assert f"{broken}:3: no format of labels: found columns {{words}}, expected {{text, text_pair}}" in err
    assert "label}" not in err, "which nobody has to give"
    assert f"{broken}:4: not JSON" in err
    assert output.read_bytes() == before
    assert not list(folder.glob("*.partial"))


def test_what_does_not_fit_is_one_plain_line(run, chain, tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("a\n")
    for more, said in [
        ([], "DATA: names no file"),
        (["--data", text, "--node", "sft"], "SFT gives no predictions of rows"),
        (["--data", text, "--batch", "3"], "--batch: unknown flag"),
        (["--data", text, "--node", "stf"], "stf: not finished; finished are"),
    ]:
        status, _, err = run("predict", "--runs", chain, *more)
        assert status == 2
        assert said in err


def test_memory_is_that_of_a_part(tmp_path, monkeypatch):
    """Rows are asked for in parts, whatever their number: what is read ahead of the predictions is one part."""
    monkeypatch.setattr(command, "_PART", 8)
    read, most = [0], [0]

    def rows():
        for number in range(100):
            read[0] += 1
            yield f"a:{number}", {"text": "b"}

    said = [0]

    def predicts(part):
        most[0] = max(most[0], read[0] - said[0])
        said[0] += len(part.kept)
        return [{"label": "x"}] * len(part.kept)

    assert command.predict(predicts, types.load("labels"), rows(), tmp_path / "out.jsonl")[0] == 100
    assert most[0] == 8

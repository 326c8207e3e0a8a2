"""Large text files are cut into documents without being held in memory; small ones are what they were."""

import gzip
import random

import pytest

from pipeline.data import documents, recipe
from pipeline.data.documents import Documents
from pipeline.data.types.text import cut
from pipeline.system.errors import UserError


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))


def parts(path, how=None):
    notes = []
    return [text for _, text, _ in (how or Documents()).read(path, lambda path: path.open("rb"), notes)], notes


def book(seed, marks):
    rng = random.Random(seed)
    return "".join("é" * rng.randrange(1, 60) + rng.choice(marks) for _ in range(400))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("marks", [["\n\n", " "], ["\n", " "], [" ", " \n"], [""], ["\n\n\n", "\n", "\n\n"]])
def test_a_file_read_in_chunks_is_cut_as_its_whole_text_is(tmp_path, monkeypatch, chunk, marks):
    monkeypatch.setattr(documents, "LARGE", 100)
    monkeypatch.setattr(documents, "_CHUNK", chunk)
    path = tmp_path / "book.txt"
    for seed in range(3):
        text = book(seed, marks)
        path.write_bytes(text.encode("utf-8-sig"))
        for longest in (120, 400):
            assert parts(path, Documents(longest))[0] == cut(text, longest)


def test_headings_begin_a_document_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LARGE", 1000)
    monkeypatch.setattr(documents, "DOCUMENT", 400)
    chapters = [f"Chapter {number}\n\n" + "\n\n".join(["It was a day like any other. " * 3] * 2) for number in range(12)]
    (tmp_path / "book.txt").write_text("\n\n".join(chapters))
    found, notes = parts(tmp_path / "book.txt")
    assert found == chapters
    assert notes == ["book.txt is cut into 12 documents at headings and blank lines"]


def test_a_word_in_a_line_is_no_heading(tmp_path):
    line = " ".join(["a part of the act"] * 70_000)
    (tmp_path / "line.txt").write_text(line)
    found, notes = parts(tmp_path / "line.txt")
    assert {len(part) // 100 for part in found[:-1]} == {199}
    assert notes == [f"line.txt is cut into {len(found)} documents at spaces"]


@pytest.mark.parametrize("mark", ["\n\n", "\n", " ", ""])
def test_cutting_goes_on_behind_any_document(tmp_path, monkeypatch, mark):
    monkeypatch.setattr(documents, "LARGE", 100)
    monkeypatch.setattr(documents, "DOCUMENT", 300)
    monkeypatch.setattr(documents, "_CHUNK", 1000)
    path = tmp_path / "book.txt.gz"
    with gzip.open(path, "wb") as file:
        file.write(book(3, [mark]).encode("utf-8-sig"))
    for how in (Documents(), Documents(separator=mark)) if mark else (Documents(),):
        whole = list(how.read(path, gzip.open, []))
        assert len(whole) > 5
        for number, (*_, place) in enumerate(whole, start=1):
            notes = []
            assert list(how.read(path, gzip.open, notes, place)) == whole[number:]
            assert notes[0].startswith(f"book.txt.gz is cut into {len(whole)} documents at ")


def test_a_recipe_names_a_separator(tmp_path):
    (tmp_path / "a.txt").write_text("one\n***\ntwo\n\nstill two\n***\n\n***\nthree")
    (tmp_path / "own.yaml").write_text(
        f'type: text\nheld_out: 0\nseparator: "\\n***\\n"\nsources:\n  - files: {tmp_path}/a.txt\n'
    )
    rows = recipe.load(str(tmp_path / "own.yaml")).rows("text", "train", 1)
    assert [row["text"] for row in rows.kept] == ["one", "two\n\nstill two", "three"]
    assert (rows.origin(2), rows.notes) == (f"{tmp_path}/a.txt, part 3", ["a.txt is cut into 3 documents at each '\\n***\\n'"])
    (tmp_path / "own.yaml").write_text(f"type: labels\nseparator: 3\nsources:\n  - files: {tmp_path}/a.txt\n")
    with pytest.raises(UserError, match="separator: expected a text, in a recipe of type text, found 3"):
        recipe.load(str(tmp_path / "own.yaml"))


def test_of_one_large_file_some_is_held_out_also_in_one_line_or_compressed(tmp_path):
    words = " ".join(f"word{number % 977}" for number in range(200_000))
    (tmp_path / "line.txt").write_text(words)
    with gzip.open(tmp_path / "line.txt.gz", "wt") as file:
        file.write(words)
    for name in ("line.txt", "line.txt.gz"):
        train, held_out = (recipe.from_data(str(tmp_path / name), "text").rows("text", split, 1) for split in recipe.SPLITS)
        assert len(train.kept) + len(held_out.kept) == -(-len(words) // 20_000)
        assert held_out.kept
        assert max(len(row["text"]) for row in train.kept) <= 20_000
        assert train.notes == [f"{name} is cut into {-(-len(words) // 20_000)} documents at spaces"]


def test_what_is_no_utf8_is_told_with_its_place_and_a_text_that_holds_nothing_out_says_so(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes("é".encode() * 300 + b"\xff" + b"x" * 10)
    monkeypatch.setattr(documents, "_CHUNK", 7)
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8 \(byte 0xff at offset 600\)"):
        recipe.from_data(str(path), "text").rows("text", "train", 1)
    path.write_text("A small book.")
    rows = recipe.from_data(str(path), "text").rows("text", "train", 1)
    assert len(rows.kept) == 1
    assert "no row is held out, so nothing can be measured" in rows.notes[0]

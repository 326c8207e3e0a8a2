"""Data that is broken somewhere in the middle: one plain line with file and row, and nothing half-written is taken for whole."""

import gzip
import json

import pytest

from pipeline.data import recipe
from pipeline.system import cache
from pipeline.system.errors import UserError
from tests.test_stream import epoch


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(path, type="text"):
    with pytest.raises(UserError) as error:
        recipe.from_data(str(path), type).rows(type, "train", 1)
    assert all("\n" not in fault for fault in error.value.faults)
    return list(error.value.faults)


def lines(count):
    return "".join(json.dumps({"text": f"row {number} " + str(number**7) * 20}) + "\n" for number in range(count))


def test_a_truncated_archive(tmp_path, place):
    packed = gzip.compress(lines(20_000).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (fault,) = refused(tmp_path / "a.jsonl.gz")
    assert fault.startswith(f"{tmp_path}/a.jsonl.gz: can't be read after row ")
    assert int(fault.partition("after row ")[2].split()[0].replace(",", "")) > 1000
    assert not [entry for entry in place.iterdir() if entry.is_dir()], "nothing of it is kept"


def test_a_truncated_parquet_file(tmp_path, place):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in lines(5000).splitlines()]), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert refused(path)[0].startswith(f"{path}: not parquet (")
    path.write_bytes(whole[:2000] + b"\0" * 2000 + whole[4000:])
    assert refused(path)[0].startswith(f"{path}: can't be read")


@pytest.mark.parametrize(("value", "name"), [(5, "int"), (None, "null"), (["a"], "list"), ({"a": 1}, "dict")])
def test_a_column_that_changes_its_type_late(tmp_path, place, value, name):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(20_000) + json.dumps({"text": value}) + "\n" + lines(10))
    assert refused(path) == [f"{path}:20001: text is {name}, not text"]


def test_columns_that_change_late(tmp_path, place):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(3000) + '{"txt": "a"}\n')
    assert refused(path) == [f"{path}:3001: no format of text: found columns {{txt}}, expected {{text}} or {{content}}"
                            "; rename the columns, or name them in a recipe, as in `columns: {mine: text}`"]  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_an_empty_source(tmp_path, place, name):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "b.jsonl").write_text(lines(50))
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / name)
    else:
        (tmp_path / name).write_text("[]" if name == "a.json" else "text\n" if name == "a.csv" else "")
    assert refused(f"{tmp_path}/{name}=0.5,{tmp_path}/b.jsonl=0.5") == [f"{name}: is empty; it holds no row"]


def test_faults_of_all_sources_are_told_at_once(tmp_path, place):
    (tmp_path / "a.jsonl").write_text("{")
    (tmp_path / "b.jsonl").write_text('{"text": 3}\n')
    assert len(refused(f"{tmp_path}/a.jsonl=1,{tmp_path}/b.jsonl=1")) == 2


@pytest.mark.parametrize(
    ("lines_of", "said"),
    [(lambda: lines(3000) + '{"txt": "a"}\n', "/train.jsonl:3001: no format of text: found columns {txt}, expected {text} or {content}"
      "; rename the columns, or name them in a recipe, as in `columns: {mine: text}`"),
     (lambda: "", ": is empty; it holds no row"), (lambda: lines(3000) + '{"text: "a"}\n', "/train.jsonl:3001: not JSON ("),
     (lambda: lines(3000) + '{"text": 5}\n', "/train.jsonl:3001: text is int, not text"),
     (lambda: lines(3000) + '{"text": ["a"]}\n', "/train.jsonl:3001: text is list, not text")],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
def test_a_folder_of_a_hub_s_form_is_told_with_the_cause(tmp_path, place, lines_of, said, streamed):
    (tmp_path / "form").mkdir()
    (tmp_path / "form" / "train.jsonl").write_text(lines_of())
    stream = "stream: yes\n" if streamed else ""
    (tmp_path / "a.yaml").write_text(f"type: text\n{stream}sources:\n  - hub: {tmp_path}/form\n")
    with pytest.raises(UserError) as error:
        epoch(recipe.load(str(tmp_path / "a.yaml")).rows("text", "train", 1))
    (fault,) = error.value.faults
    assert fault.startswith(f"{tmp_path}/form{said}")
    assert "\n" not in fault


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda path: path.write_text(lines(4001)), "was changed while it was read"),
     (lambda path: path.write_text(lines(10)), "was changed while it was read"), (lambda path: path.unlink(), "was removed while it was read")],
)  # fmt: skip
def test_a_file_that_changes_in_the_middle(tmp_path, place, monkeypatch, change, said):
    from pipeline.data import split

    path, add = tmp_path / "a.jsonl", split.Sides.add
    path.write_text(lines(4000))
    monkeypatch.setattr(
        split.Sides,
        "add",
        lambda self, rows, *given: (
            (f"{path}:2000" in rows.column("origin").to_pylist() and change(path)) or add(self, rows, *given)
        ),
    )
    (fault,) = refused(path)
    assert fault in (f"{path}: {said}", f"{path}: {said}; run the same command again")
    assert not [entry for entry in place.iterdir() if entry.is_dir()], "nothing of it is kept"


@pytest.mark.slow
def test_a_column_that_changes_its_type_in_row_2000000(tmp_path, place):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"text": "row {number}"}}\n' for number in range(1_999_999))
        file.write('{"text": 5}\n')
    assert refused(path) == [f"{path}:2000000: text is int, not text"]
    assert not [entry for entry in place.iterdir() if entry.is_dir()], "nothing of it is kept"


def test_the_same_bytes_under_another_compression_are_another_file(tmp_path, place):
    (tmp_path / "a.jsonl").write_text(lines(50))
    assert recipe.from_data(f"{tmp_path}/a.jsonl", "text").rows("text", "train", 1).kept
    (tmp_path / "a.jsonl").rename(tmp_path / "a.jsonl.gz")
    assert "Not a gzipped file" in refused(tmp_path / "a.jsonl.gz")[0]


def test_files_of_a_folder_that_can_t_be_read_are_told(tmp_path, place):
    folder = tmp_path / "mine"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jsonl").write_text(lines(50))
    for name in ("README.md", ".hidden.zip", "old.zip", "more/b.xlsx", "more/c.xlsx"):
        (folder / name).write_text("x")
    assert recipe.from_data(str(folder), "text").rows("text", "train", 1).notes == [
        "a.jsonl: not read: 2 .xlsx files, 1 .zip file"
    ]


def test_of_a_file_that_is_all_wrong_not_every_row_is_read(tmp_path, place):
    (tmp_path / "a.jsonl").write_text('{"txt": "a"}\n' * 30_000)
    told = refused(tmp_path / "a.jsonl")
    assert (len(told), told[-1]) == (11, "... and at least 9,990 more faults of this kind")


def test_a_pass_that_was_killed_is_made_again(tmp_path, place, monkeypatch):
    from pipeline.data import kept

    (tmp_path / "a.jsonl").write_text(lines(500))
    close = kept.Writer.close
    monkeypatch.setattr(kept.Writer, "close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    given = recipe.from_data(str(tmp_path / "a.jsonl"), "text")
    with pytest.raises(KeyboardInterrupt):
        given.rows("text", "train", 1)
    monkeypatch.setattr(kept.Writer, "close", close)
    cache._held.clear()
    rows = given.rows("text", "train", 1)
    assert len(rows.kept) + rows.held_out == 500


def test_an_entry_that_vanishes_while_others_are_counted_is_no_fault(monkeypatch, tmp_path):
    """Another process finishes it, or removes it."""
    monkeypatch.setenv("CACHE", str(tmp_path))
    (tmp_path / "rows-1.partial").mkdir()
    listed = type(tmp_path).iterdir

    def vanishing(path):
        if path.name == "rows-1.partial":
            path.rmdir()
        return listed(path)

    monkeypatch.setattr(type(tmp_path), "iterdir", vanishing)
    assert cache.shrink(10) == (0, 0)

import bz2
import gzip
import json
import lzma

import pytest

from pipeline.data import files, hubs, recipe, sources
from pipeline.data.paths import Paths
from pipeline.data.source_recipe import Source, SourceRecipe
from pipeline.system.errors import UserError

ROWS = [{"text": "Äpfel, 北京"}, {"text": 'two\n"lines"'}]


def rows(path):
    return [row for _, row in files.read(sources.expand(str(path)))]


def jsonl():
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def test_every_kind_of_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.jsonl").write_bytes(jsonl())
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    (tmp_path / "c.csv").write_text('text\n"Äpfel, 北京"\n"two\n""lines"""\n')
    (tmp_path / "d.tsv").write_text('text\n"Äpfel, 北京"\n"two\n""lines"""\n')
    (tmp_path / "e.json").write_bytes(jsonl())  # one object a line under the wrong ending
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert rows(path) == ROWS, path
    (tmp_path / "g.txt").write_text("one document\n\nof two paragraphs")
    (tmp_path / "h.md").write_text("# Head")
    assert rows(tmp_path / "g.txt") == [{"text": "one document\n\nof two paragraphs"}]
    assert rows(tmp_path / "*.md") == [{"text": "# Head"}]
    assert len(rows(tmp_path)) == 2 * 6 + 2


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_files(tmp_path, ending, pack):
    (tmp_path / f"a.jsonl{ending}").write_bytes(pack(jsonl()))
    assert rows(tmp_path / f"a.jsonl{ending}") == ROWS


def test_zstandard(tmp_path):
    import pyarrow

    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as file:
        file.write(jsonl())
    assert rows(tmp_path / "a.jsonl.zst") == ROWS


def test_ten_broken_lines_are_shown_and_the_rest_is_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' * 100 + b"\xff\xfe\n" + b"{broken\n" * 30)
    with pytest.raises(UserError) as error:
        rows(path)
    faults = error.value.faults
    assert faults[0] == f"{path}:101: not UTF-8 (byte 0xff at column 1)"
    assert faults[1].startswith(f"{path}:102: not JSON (")
    assert len(faults) == 11
    assert faults[-1] == "... and 21 more faults of this kind"


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "[1, 2]"), ("a.jsonl", "[1]\n"), ("a.csv", "a,b\n1\n"), ("a.parquet", "no")]
)
def test_broken_files_are_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name):
        rows(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_two_columns_of_one_name_are_refused(tmp_path, name):
    mark = "," if name == "a.csv" else "\t"
    (tmp_path / name).write_text(mark.join(("text", "text", "id")) + "\n" + mark.join("abc") + "\n")
    with pytest.raises(UserError, match=f"{name}: row 1: two columns are named 'text'"):
        rows(tmp_path / name)


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud800"}\n{"text": "\\ud83d\\ude00"}\n')
    with pytest.raises(UserError) as error:
        rows(tmp_path / "a.jsonl")
    assert len(error.value.faults) == 1
    assert "a.jsonl:1: half of a surrogate pair" in error.value.faults[0]


def test_broken_compression_is_one_line(tmp_path):
    (tmp_path / "a.jsonl.xz").write_bytes(b"not xz")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl() * 100)[:60])
    for ending in ("xz", "gz"):
        with pytest.raises(UserError, match=f"a.jsonl.{ending}: can't be read"):
            rows(tmp_path / f"a.jsonl.{ending}")


def test_a_missing_and_an_unknown_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        sources.expand(str(tmp_path / "none.jsonl"))
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match=r"can't read .docx files; known are"):
        sources.expand(str(tmp_path / "a.docx"))


def test_hub_ids_load_by_datasets(tmp_path):
    """A local folder of the form that a hub repository has goes through the same call."""
    (tmp_path / "ds" / "data").mkdir(parents=True)
    (tmp_path / "ds" / "data" / "train-00000.jsonl").write_bytes(jsonl())
    assert [row for _, row in hubs.read(str(tmp_path / "ds"))] == ROWS
    with pytest.raises(UserError, match="can't load split 'test'"):
        list(hubs.read(str(tmp_path / "ds"), split="test"))
    for name in ("somebody/rows", "teknium/OpenHermes-2.5"):
        assert recipe.from_data(name, "text").given[0].hub == {"name": name}
    known = Source(hub={"name": str(tmp_path / "ds")}).identity()
    (tmp_path / "ds" / "data" / "train-00000.jsonl").write_bytes(jsonl() * 2)
    assert Source(hub={"name": str(tmp_path / "ds")}).identity() != known


def test_a_missing_package_names_the_remedy():
    with pytest.raises(UserError, match="the package no-such-thing is not installed; `make setup-data` installs it"):
        sources.package_files("no-such-thing", "*")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_csv_file_says_by_its_header_how_it_is_cut(tmp_path, delimiter):
    (tmp_path / "a.csv").write_text(f'text{delimiter}"a,b;c"\n"x, y; z\nw"{delimiter}1\n')
    assert rows(tmp_path / "a.csv") == [{"text": "x, y; z\nw", "a,b;c": "1"}]


@pytest.mark.parametrize(
    ("encoding", "text", "name"),
    [("gb18030", "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。", "GB18030"), ("utf-16", "Hello, world", "UTF-16"),
     ("cp1252", "Der Bär läßt die Äpfel stehen. Où est la bibliothèque, garçon ?", "CP1252"),
     ("cp1251", "Это русский текст для проверки кодировки файла.", "CP1251")],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_an_encoding_is_named_with_the_remedy(tmp_path, encoding, text, name, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(f"text\n{text}\n".encode(encoding) * 20)
    with pytest.raises(UserError) as error:
        rows(path)
    assert (
        f"; it looks like {name}: `iconv -f {name} -t UTF-8 {path} > {path.with_name(f'utf-8-a.{ending}')}` converts it"
        in error.value.faults[0]
    )


def test_a_long_reason_is_written_once(tmp_path):
    path = tmp_path / "faq.csv"
    path.write_text("Ask,Say\r\n" + "why,so\r\n" * 30)
    with pytest.raises(UserError) as error:
        SourceRecipe("faq", [Source.of(str(path), "messages")], "messages").rows("messages", "train", 42)
    first, *others = error.value.faults
    assert first.startswith(f"{path}: row 2: no format of messages: found columns {{Ask, Say}}")
    assert others == [*(f"{path}: row {number}: the same" for number in range(3, 12)), "... and 20 more faults of this kind"]


def test_what_tells_of_a_folder_s_data_is_none(tmp_path):
    (tmp_path / ".cache").mkdir()
    for name in ("README.md", "dataset_infos.json", "LICENSE.txt", ".cache/b.jsonl"):
        (tmp_path / name).write_text("# About")
    with pytest.raises(UserError, match="no readable file in that folder"):
        sources.expand(str(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    assert rows(tmp_path) == ROWS
    assert rows(tmp_path / "README.md") == [{"text": "# About"}]


def test_very_many_paths_take_little_memory_and_are_what_they_were(tmp_path):
    import tracemalloc

    given = [tmp_path / f"photos of {number % 7}" / f"{number:06}-äé北.png" for number in range(2000)]
    found = Paths(given)
    assert list(found) == given
    assert (len(found), found[0], found[-1], found[7]) == (2000, given[0], given[-1], given[7])
    assert list(found[3:9:2]) == given[3:9:2]
    with pytest.raises(IndexError):
        found[2000]
    assert not Paths([])

    def size(make):
        tracemalloc.start()
        held = make(tmp_path / "photos" / f"{number:06}.png" for number in range(2000))
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return taken / len(held)

    assert size(Paths) < len(str(tmp_path)) + 40 < size(list)


def test_a_folder_without_a_split_by_name_is_held_once(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    source = Source.of(str(tmp_path), "text")
    ((side, held_out),) = source.sides
    assert side.files is source.files
    assert not held_out


def test_a_record_names_a_large_folder_as_one(tmp_path, monkeypatch):
    from pipeline.data import source_recipe

    monkeypatch.setattr(source_recipe, "_NAMED", 3)
    for name, count in (("many", 4), ("few", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number}")
    given = recipe.from_data(str(tmp_path), "text")
    before = given.digest("text"), given.contents()
    assert [name for name, _ in before[1]] == ["few/0.txt", "few/1.txt", "few/2.txt", "many: 4 files"]
    (tmp_path / "many" / "2.txt").write_text("another")
    after = given.digest("text"), given.contents()
    assert after[0] != before[0]
    assert after[1][:3] == before[1][:3]
    assert after[1][3][1] != before[1][3][1]

import json
import os

import pytest

from pipeline.system import hashes


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return hashes._Memory()


def old(path, text):
    path.write_text(text)
    os.utime(path, ns=(1, 1))
    return path


def test_an_unchanged_file_is_read_once(tmp_path, memory, monkeypatch):
    path = old(tmp_path / "a", "a")
    first = memory.sha256(path)
    assert first == hashes.read(path)
    monkeypatch.setattr(hashes, "read", lambda path: pytest.fail(f"read {path}"))
    assert memory.sha256(path) == first
    memory.keep()
    assert hashes._Memory().sha256(path) == first  # another process


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_changed_file_is_read_again(tmp_path, memory, change):
    path = old(tmp_path / "a", "a")
    before = memory.sha256(path)
    if change == "size":
        path.write_text("ab")
        os.utime(path, ns=(1, 1))
    elif change == "time":
        path.write_text("b")
        os.utime(path, ns=(2, 2))
    else:
        old(tmp_path / "b", "b").replace(path)
    assert memory.sha256(path) == hashes.read(path) != before


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, memory):
    path = tmp_path / "a"
    path.write_text("a")
    memory.sha256(path)
    assert not memory.known


@pytest.mark.parametrize("text", ["", "[1]", '{"a"'])
def test_a_broken_memory_only_costs_time(tmp_path, memory, text):
    memory.path.parent.mkdir(parents=True)
    memory.path.write_text(text)
    path = old(tmp_path / "a", "a")
    found = hashes._Memory()
    assert found.sha256(path) == hashes.read(path)
    found.keep()
    assert str(path) in json.loads(found.path.read_text())


def test_a_home_that_cannot_be_written_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = hashes._Memory()
    found.sha256(old(tmp_path / "a", "a"))
    found.keep()


def test_what_is_read_once_has_the_digest_of_lists():
    rows = [[f"photos/{number}.png", f"äé北 {number}"] for number in range(50)]
    value = [False, [], rows, {"b": [1, 2.5], "a": None}, "text"]
    lazy = [False, iter([]), iter(rows), {"b": [1, 2.5], "a": None}, "text"]
    assert hashes.streamed(lazy) == hashes.streamed(value) == hashes.digest(value)
    assert hashes.streamed([iter(rows[1:])]) != hashes.digest([rows])

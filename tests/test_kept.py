"""Rows on disk read like a list, and the cache that keeps what was made: whole or not there, locked, bounded."""

import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from pipeline.data import kept, reading, recipe, rows
from pipeline.data.seen import Seen
from pipeline.system import cache
from pipeline.system.errors import UserError
from pipeline.system.hashes import digest


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_rows_on_disk_are_read_like_a_list(monkeypatch):
    monkeypatch.setattr(kept, "_ROWS", 7)  # many record batches
    rows = [
        {"text": f"row {number} 北京", **({"group": None, "n": [1, {"a": 0.5}]} if number % 3 else {})} for number in range(40)
    ]
    rows.append({"text": "half \ud800"})
    found, origins = kept.spooled(lambda writer: [writer.add(row, f"f:{number}") for number, row in enumerate(rows)])
    assert found == rows
    assert [found[number] for number in (0, 6, 7, -1)] == [rows[number] for number in (0, 6, 7, -1)]
    assert [found[5:30], found[::9], found[50:]] == [rows[5:30], rows[::9], []]
    assert [list(row) for row in found] == [list(row) for row in rows]  # columns in their order, too
    assert origins[30] == "f:30"
    some = found.select([3, 8, 20]).select([0, 2])
    assert (list(some), some[1], len(some)) == ([rows[3], rows[20]], rows[20], 2)
    with pytest.raises(IndexError):
        found[41]
    assert not list(cache.folder().iterdir())  # the file has no name


def test_an_entry_is_whole_or_is_made_again(place):
    made = []

    def make(folder):
        made.append(sorted(path.name for path in folder.iterdir()))
        (folder / f"part{len(made)}").write_text("x" * 10)
        if len(made) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.made("rows-a", make)
    assert not (place / "rows-a").exists()
    assert cache.made("rows-a", make) == cache.made("rows-a", make) == place / "rows-a"
    assert made == [[], ["part1"]]  # it went on with what was there
    (place / "rows-a" / "part2").write_text("cut")
    cache.made("rows-a", make)
    assert len(made) == 3
    with pytest.raises(UserError):
        cache.made("rows-b", lambda folder: (folder / "half").write_text("x") and (_ for _ in ()).throw(UserError("broken")))
    assert not list(place.glob("rows-b*l"))


def test_the_cache_is_bounded_and_an_entry_in_use_stays(place, monkeypatch):
    code = "import sys, time; from pipeline.system import cache; cache.made('rows-used', lambda f: (f / 'x').write_text('x' * 900)); print(1, flush=True); time.sleep(60)"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as user:
        assert user.stdout.readline()
        for name in ("tokens-old", "tokens-new"):
            cache.made(name, lambda folder: (folder / "x").write_text("x" * 900))
        cache._let_go(place / "tokens-old")
        cache._let_go(place / "tokens-new")
        for age, name in enumerate(("tokens-new", "tokens-old", "rows-used"), start=1):
            os.utime(place / name / "whole.json", (time.time() - age * 100,) * 2)
        assert cache.shrink(2500)[0] == 1
        assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["rows-used", "tokens-new"]
        user.kill()
    assert cache.shrink(0) == (2, 0)
    monkeypatch.setenv("CACHE_GB", "much")
    with pytest.raises(UserError, match="CACHE_GB: much: expected a number of gigabytes"):
        cache.made("rows-c", lambda folder: None)


def test_a_pass_over_a_source_serves_both_splits_and_every_repeat(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(200)))
    passes = []
    whole = reading.whole
    monkeypatch.setattr(reading, "whole", lambda *given: passes.append(1) or whole(*given))
    found = [recipe.from_data(str(path), "text").rows("text", split, 1) for split in (*recipe.SPLITS, "train")]
    assert len(passes) == 1
    assert found[0].kept == found[2].kept
    assert len(found[0].kept) + len(found[1].kept) == 200
    recipe.from_data(str(path), "text").rows("text", "train", 2)
    path.write_text('{"text": "other"}\n')
    assert recipe.from_data(str(path), "text").rows("text", "train", 1).kept == [{"text": "other"}]
    assert len(passes) == 3


def test_a_file_that_changes_while_it_is_read_is_told_and_nothing_is_kept(tmp_path, place, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    whole = reading.whole
    monkeypatch.setattr(reading, "whole", lambda *given: whole(*given) or path.write_text('{"text": "b"}\n{}'))
    with pytest.raises(UserError, match=r"a\.jsonl: was changed while it was read"):
        recipe.from_data(str(path), "text").rows("text", "train", 1)
    assert not list(place.glob("rows-*l"))


def test_a_tokenizer_learns_from_a_bounded_sample_by_seed():
    given = [{"text": f"{number:05}"} for number in range(2000)]
    texts, told = rows.sample(given, 10_000, 1)
    assert (list(texts), told) == ([row["text"] for row in given], "2,000 rows")
    drawn = [list(rows.sample(given, 2_500, seed)[0]) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(350 < len(texts) < 650 for texts in drawn)
    assert rows.sample(given, 2_500, 1)[1] == "a sample of 25.0% of the 2,000 rows, about 2,500 of 10,000 characters"


def test_the_cache_is_emptied(run, place, tmp_path):
    cache.made("tokens-a", lambda folder: (folder / "x").write_text("x" * 900))
    assert run("clean_cache")[:2] == (0, f"clean    {place}: 0 entries removed; 910 bytes are in use and stay\n")
    cache._let_go(place / "tokens-a")
    (place / "rows-failed.lock").touch()
    assert run("clean_cache")[:2] == (0, f"clean    {place}: 1 entry removed\n")
    assert not list(place.iterdir())


def test_who_waited_for_a_lock_that_was_removed_takes_the_one_that_holds():
    entry = cache.folder() / "rows-a"
    with ThreadPoolExecutor() as pool:
        with cache._locked(entry, fcntl.LOCK_EX) as held:
            waiting = pool.submit(cache._locked, entry, fcntl.LOCK_EX)
            time.sleep(0.2)
            os.unlink(held.name)
        with waiting.result(10), pytest.raises(BlockingIOError):
            cache._locked(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_was_seen_is_on_disk_once_it_is_much():
    seen = Seen()
    assert [seen.new(digest([name])) for name in "abacab"] == [True, True, False, True, False, False]
    before = psutil.Process().memory_info().rss
    assert all(seen.new(f"{number:064x}"[::-1]) for number in range(200_000))
    assert not seen.new(f"{77:064x}"[::-1])
    assert psutil.Process().memory_info().rss - before < 8e6  # a set of these would take 30 MB

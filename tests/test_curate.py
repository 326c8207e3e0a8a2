"""Curation: what is dropped is one of its kind, what is kept is not, and a kill or another number of cores changes no byte."""

import json
import os
import random
from collections import Counter

import numpy as np
import pytest

from pipeline.chain import blocks, manifest
from pipeline.curation import contamination, duplicates, passes, rules, words
from pipeline.data import rows as files
from pipeline.data import types
from pipeline.system.errors import UserError

pytest.importorskip("rensa")
WORDS = [f"{a}{b}" for a in "ba ko mi lu ser tan vel dor".split() for b in "n na rik to sha mo lin dra".split()]


def texts(count, length=60, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=length)) for _ in range(count)]


def altered(text, places, seed=0):
    """Return a text of which some words are others."""
    said = text.split()
    for place in random.Random(seed).sample(range(len(said)), places):
        said[place] = "altered"
    return " ".join(said)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def left(folder):
    return {split: list(files.read(folder / f"{split}.parquet")) for split in files.SPLITS}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to anna.b-c+d@mail.example.co.uk.", "write to <email>."),
        ("call +49 (0)30 901820-12 or 00 44 20 7946 0958", "call <phone> or <phone>"),
        ("call (212) 555-0187 or 212-555-0187", "call <phone> or <phone>"),
        ("from 8.8.8.8 and 2001:4860:4860::8888", "from <ip> and <ip>"),
        ("card 4111 1111 1111 1111, 5500-0055-5555-5559", "card <card>, <card>"),
        ("pay DE89 3704 0044 0532 0130 00", "pay <iban>"),
        ("key hf_abcdefghijklmnopqrstuvwx", "key <key>"),
    ],
)  # fmt: skip
def test_personal_data_is_masked(text, masked):
    counts = Counter()
    assert rules.load("personal_data", {}).changed(text, counts) == masked
    assert counts.total() == masked.count("<")


@pytest.mark.parametrize(
    "text",
    [
        "In 1984 he read John 3:16-18, pages 100-200, for 1,000,000.50 dollars.",
        "Version 1.2.3.4.5 runs on 192.168.0.1 and 127.0.0.1 at 12:30:45.",
        "Card 4111 1111 1111 1112 and pi 3.14159265358979323846 are none; @home is no address, a@b is none.",
        "ISBN 978-3-16-148410-0 of 2026-11-26, order 20261126123456789.",
        "std::vector, AB12 3456 and sk-learn, GB00 0000 0000 0000 00",
    ],
)
def test_what_is_no_personal_data_is_left_alone(text):
    assert rules.load("personal_data", {}).changed(text, Counter()) == text


def test_each_rule_says_why():
    pytest.importorskip("datatrove")
    prose = "The house that stood by the river was old. It had been there for as long as anybody with a memory could say. " * 1
    prose = " ".join(
        f"{prose} In the year {year} of the flood they {verb} the roof, and nobody knows to this day what it did cost them."
        for year, verb in zip(("first", "second", "third"), ("built", "painted", "lost"), strict=True)
    )
    assert rules.load("gopher_quality", {}).fault(prose) is None
    assert rules.load("gopher_quality", {}).fault("too few") == "Gopher quality: short_doc"
    assert rules.load("gopher_quality", {"min_doc_words": 1, "min_stop_words": 0}).fault("too few words") is None
    assert rules.load("gopher_repetition", {}).fault("buy it now\n" * 9) == "Gopher repetition: dup_line_frac"
    assert rules.load("fineweb_quality", {}).fault("menu\nhome\nlogin\n" * 3) == "FineWeb quality: line_punct_ratio"
    c4 = rules.load("c4_quality", {"min_num_sentences": 2})
    assert c4.changed("A line that ends well.\nA menu\nWe use cookies, really.", Counter()) == "A line that ends well."
    assert c4.fault("Only one sentence.") == "C4 quality: too_few_sentences"


def test_language():
    pytest.importorskip("py3langid")
    german = "Der alte Mann ging langsam die Straße hinunter und kaufte sich ein Brot."
    assert rules.load("language", {"languages": ["en"]}).fault(german) == "language: de"
    assert rules.load("language", {"languages": ["de"]}).fault(german) is None
    with pytest.raises(UserError, match="no such language: xx"):
        rules.load("language", {"languages": ["xx"]})


def test_every_dropped_row_is_like_one_that_is_kept_and_no_two_kept_ones_are(tmp_path):
    base = texts(60)
    rows = base + [altered(text, places, places) for text in base for places in (1, 1, 2, 4)] + [t.upper() + "!" for t in base]
    random.Random(3).shuffle(rows)
    rows = [{"text": text} for text in rows]
    keys = duplicates.Keys(tmp_path / "keys")
    for start in range(0, len(rows), 50):
        keys.add(duplicates.keys(rows[start : start + 50], True))
    keys.close()
    flags = np.zeros(len(rows), np.uint8)
    found = list(duplicates.find(keys, rows.__getitem__, 0.8, True, flags))
    assert [same.row for same in found] == sorted({same.row for same in found}) == np.flatnonzero(flags).tolist()
    sets = [duplicates.shingles(row) for row in rows]
    for same in found:
        assert not flags[same.kept]
        assert same.kept < same.row
        assert same.similarity == duplicates.jaccard(sets[same.row], sets[same.kept]) >= 0.8
    kept = np.flatnonzero(flags == 0).tolist()
    alike = [(a, b) for a in kept for b in kept if a < b and duplicates.jaccard(sets[a], sets[b]) >= 0.85]
    assert alike == []
    assert sum(same.exact for same in found) >= 60


def test_small_parts_find_the_same(tmp_path, monkeypatch):
    rows = [{"text": text} for text in texts(30) for text in (text, altered(text, 1), text)]

    def found(name):
        keys = duplicates.Keys(tmp_path / name)
        keys.add(duplicates.keys(rows, True))
        keys.close()
        return list(duplicates.find(keys, rows.__getitem__, 0.8, True, np.zeros(len(rows), np.uint8)))

    whole = found("whole")
    monkeypatch.setattr(duplicates, "_PART", 7)
    monkeypatch.setattr(duplicates, "_BLOCK", 4)
    assert found("parts") == whole
    assert len(whole) == 60


def test_a_row_is_contaminated_by_a_passage_and_not_by_a_phrase(tmp_path):
    held, task = texts(2, 120, 1), "What is the capital of France?"
    writer = contamination.Writer(tmp_path / "index")
    writer.add("a held-out row", held)
    writer.add("tasks.jsonl", [task, "yes"])
    writer.close()
    index = contamination.Index(tmp_path / "index")
    own = texts(1, 200, 2)[0]
    passage, phrase = (" ".join(held[0].split()[20:end]) for end in (75, 32))
    assert index.holds({"text": own}, 0.5) is None
    assert index.holds({"text": f"{own} {phrase} {own}"}, 0.5) is None
    assert index.holds({"text": f"{own} {passage.upper()}. {own}"}, 0.5) == "a held-out row"
    assert index.holds({"text": altered(passage, 2)}, 0.5) == "a held-out row"
    chat = [{"role": "user", "content": "what is the CAPITAL of france"}, {"role": "assistant", "content": "yes"}]
    assert index.holds({"messages": chat}, 0.5) == "tasks.jsonl"
    assert index.holds({"messages": chat[1:]}, 0.5) is None


def test_what_is_asked_of_a_held_out_row():
    chat = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]
    assert contamination.asked(types.load("messages"), {"messages": chat}) == ["user"]
    pair = {"prompt": chat[:2], "chosen": chat[2:3], "rejected": chat[2:3]}
    assert contamination.asked(types.load("preference"), pair) == ["user"]
    assert contamination.asked(types.load("text"), {"text": "all of it", "group": "one"}) == ["all of it"]


def test_letters_without_blanks_are_words():
    assert words.words("你好，World-wide！") == ["你", "好", "world", "wide"]
    assert len(words.grams(["a", "b", "c"], 5)) == 1
    assert len(words.grams([], 5)) == 0


@pytest.fixture
def messy(tmp_path):
    """Chats with duplicates, a system prompt that all share, and an address in each."""
    rng = random.Random(5)

    def chat(asked, answered):
        turns = [("system", "You are a helpful assistant and answer in plain words whatever you are asked by anybody.")]
        turns += [("user", asked), ("assistant", answered)]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    base = [chat(f"{text}?", f"Ask {name}@mail.org") for name, text in zip(WORDS * 9, texts(400, 60, 7), strict=False)]
    again = [chat(row["messages"][1]["content"].upper(), row["messages"][2]["content"]) for row in base[:40]]
    near = [chat(altered(row["messages"][1]["content"], 1), row["messages"][2]["content"]) for row in base[40:80]]
    rows = [*base, *again, *near]
    rng.shuffle(rows)
    return write(tmp_path / "chats.jsonl", rows)


def test_a_node_of_chats_says_what_it_dropped_and_hands_on_the_rest(run, messy, tmp_path):
    status, out, err = run("curate", "--data", messy, "--type", "messages", "--output", tmp_path / "curate")
    assert status == 0, err
    record = manifest.read(tmp_path / "curate")
    told, kept = record["curation"], left(tmp_path / "curate")
    assert (record["family"], record["rows_type"]) == ("rows", "messages")
    for split in files.SPLITS:
        one = told[split]
        assert one["kept"] == len(kept[split]) > 0
        assert one["rows"] == one["kept"] + sum(one["dropped"].values())
        assert one["changed"] == {"email masked": one["rows"]}
        assert one["dropped"].keys() == one["samples"].keys()
    assert sum(one["dropped"].get("duplicate", 0) for one in told.values()) == 40
    assert sum(sum(one["dropped"].values()) for one in told.values()) >= 78
    assert all(sample["kept_text"] for sample in told["train"]["samples"]["near-duplicate"])
    assert "@" not in json.dumps(kept)
    assert f"train, without duplicates: {len(kept['train'])} of" in out
    flags = ["--data", tmp_path / "curate", "--type", "messages", "--output", tmp_path / "again", "--rules", "{}"]
    assert run("curate", *flags)[0] == 0  # its rows are a node's: nothing is left to drop
    assert left(tmp_path / "again") == kept


def test_a_kill_and_more_cores_change_no_byte(run, messy, tmp_path, monkeypatch):
    flags = ["--data", messy, "--type", "messages", "--output"]
    assert run("curate", *flags, tmp_path / "once")[0] == 0
    monkeypatch.setattr("pipeline.data.tokens._BATCH", 100)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    keep, made = blocks.keep, []

    def unplugged(*given):
        if len(made) == 3:
            raise OSError("pulled the plug")
        made.append(given[1])
        keep(*given)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "keep", unplugged)
        assert run("curate", *flags, tmp_path / "killed")[0] == 1
    clean, cleaned = passes.clean, []
    monkeypatch.setattr(passes, "clean", lambda plan, items: cleaned.append(len(items)) or clean(plan, items))
    assert run("curate", *flags, tmp_path / "killed")[0] == 0
    monkeypatch.setattr(passes, "clean", clean)
    assert len(cleaned) == 3  # of six blocks
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert run("curate", *flags, tmp_path / "two")[0] == 0
    for name in ("train.parquet", "held_out.parquet"):
        assert len({(tmp_path / node / name).read_bytes() for node in ("once", "killed", "two")}) == 1
    assert len({json.dumps(manifest.read(tmp_path / node)["curation"]) for node in ("once", "killed", "two")}) == 1


def test_faults_are_told_at_once(run, messy, tmp_path):
    flags = ["--data", messy, "--type", "messages", "--output", tmp_path / "curate"]
    given = "{gopher: {}, personal_data: {kinds: [name]}, gopher_quality: {min_words: 3}}"
    status, _, err = run("curate", *flags, "--rules", given, "--near_duplicates", "0.5")
    assert status == 2
    assert "gopher: no such rule" in err
    assert "kinds: name: no such kind" in err
    assert "min_words" in err
    assert "near_duplicates: 0.5: below 0.7" in err
    status, _, err = run("curate", *flags, "--rules", "{language: {languages: [de], shortest: 1}}")
    assert status == 2
    assert "no row is left" in err
    assert not (tmp_path / "curate").exists()


def test_rows_are_written_in_parts(tmp_path, monkeypatch):
    rows = [{"messages": [{"role": "user", "content": f"{n}"}]} for n in range(5)]
    rows += [
        {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}], "group": "a"},
        {"messages": [], "n": 2},
    ]
    files.save(tmp_path / "whole.parquet", rows)
    monkeypatch.setattr(files, "_PART", 2)
    files.save(tmp_path / "parts.parquet", rows)
    assert list(files.read(tmp_path / "parts.parquet")) == list(files.read(tmp_path / "whole.parquet")) == rows
    files.save(tmp_path / "none.parquet", [])
    assert list(files.read(tmp_path / "none.parquet")) == []


def test_the_report_shows_samples(run, messy, tmp_path):
    folder = tmp_path / "runs"
    assert run("curate", "--data", messy, "--type", "messages", "--output", folder / "curate")[0] == 0
    status, _, err = run("report", "--runs", folder)
    assert status == 0, err
    page = (folder / "report.html").read_text()
    assert "samples of what was dropped" in page
    sample = manifest.read(folder / "curate")["curation"]["train"]["samples"]["near-duplicate"][0]
    assert f"similarity {sample['similarity']}" in page

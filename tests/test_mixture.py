"""Sources by their shares of the training tokens: what was asked is got, and nothing held out is read."""

import json
from collections import Counter

import numpy as np
import pytest

from pipeline.data import mixture, packing, recipe, token_tables
from pipeline.data.mixture import Part
from pipeline.system.errors import UserError


def examples(tmp_path, sizes, column="input_ids"):
    rows = [{column: [number] * length, "row": number} for number, length in enumerate(sizes)]
    return token_tables.write(rows, tmp_path / "examples.arrow")


@pytest.mark.parametrize("shares", [(0.7, 0.3), (1, 3), (0.02, 0.98), (0.5, 0.5)])
def test_proportions_are_got_within_one_percent(tmp_path, shares):
    sizes = np.random.default_rng(1).integers(5, 200, 3000)
    sizes[1000:] *= 3
    dataset = examples(tmp_path, sizes.tolist())
    found, told = mixture.mixed(dataset, [Part("a", 0, 1000, shares[0]), Part("b", 1000, 3000, shares[1])], 1)
    got = Counter()
    for row in found:
        got["ab"[row["row"] >= 1000]] += len(row["input_ids"])
    total = sum(got.values())
    for name, share, item in zip("ab", shares, told, strict=True):
        assert abs(got[name] / total - share / sum(shares)) < 0.01
        assert (item["source"], item["tokens"]) == (name, got[name])
        assert abs(item["got"] - got[name] / total) < 1e-5
        own = sizes[:1000] if name == "a" else sizes[1000:]
        assert abs(item["epochs"] - got[name] / own.sum()) < 1e-5
    assert abs(total / sizes.sum() - 1) < 0.01
    times = Counter(row["row"] for row in found)
    for numbers in (range(1000), range(1000, 3000)):
        counts = {times[number] for number in numbers}
        assert max(counts) - min(counts) <= 1, "of one source no example is read twice before each was read once"
    (words,) = mixture.told({"mixture": told})
    assert words.startswith(f"mixture: a {told[0]['got']:.1%} of the tokens (asked ")
    assert "times an epoch; b " in words


def test_the_same_seed_gives_the_same_mixture_and_packing_keeps_it_apart_from_others(tmp_path):
    dataset = examples(tmp_path, [10] * 60)
    dataset = dataset.map(lambda row: {"labels": row["input_ids"]})
    one, again, other = (
        mixture.mixed(dataset, [Part("a", 0, 20, share), Part("b", 20, 60, 1)], seed)[0]
        for share, seed in ((1, 1), (1, 1), (1, 2))
    )
    assert one["row"][:] == again["row"][:]
    assert one["row"][:] != other["row"][:]
    whole, packed = packing.pack(dataset, 40), packing.pack(one, 40)
    assert sum(map(len, whole["input_ids"][:])) == 600
    got = Counter(number < 20 for row in packed["input_ids"][:] for number in row)
    assert got[True] == got[False] == 300


def test_a_source_without_an_example_is_told(tmp_path):
    with pytest.raises(UserError, match=r"mixture: b\.jsonl: no row of it is left for training"):
        mixture.mixed(examples(tmp_path, [3, 4]), [Part("a.jsonl", 0, 2, 1), Part("b.jsonl", 2, 5, 1)], 1)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("count", [2, 200])
def test_a_command_line_names_shares_and_what_is_held_out(tmp_path, count):
    a = write(tmp_path / "a.jsonl", [{"text": f"a {number}"} for number in range(count)])
    b = write(tmp_path / "b.jsonl", [{"text": f"b {number}"} for number in range(2 * count)])
    c = write(tmp_path / "c.jsonl", [{"text": "a 0"}])
    given = recipe.from_data(f"{a}=0.7,{b}=0.3", "text")
    train, held_out = (given.rows("text", split, 1) for split in recipe.SPLITS)
    assert [(part.name, part.share) for part in train.parts] == [("a.jsonl", 0.7), ("b.jsonl", 0.3)]
    for part, letter in zip(train.parts, "ab", strict=True):
        assert {row["text"][0] for row in train.kept[part.start : part.stop]} == {letter}
    assert train.parts[0].start == 0
    assert train.parts[1].stop == len(train.kept)
    assert held_out.kept
    assert not held_out.parts
    assert len(train.kept) + len(held_out.kept) == 3 * count
    mixed = recipe.from_data(f"{a}=0.5,{b}=0.5,{c}=held_out", "text").rows("text", "train", 1)
    assert (mixed.held_out, len(mixed.kept), mixed.dropped.total()) == (1, 3 * count - 1, 1)
    assert [(part.start, part.stop) for part in mixed.parts] == [(0, count - 1), (count - 1, 3 * count - 1)]
    other = recipe.from_data(f"{a}=0.6,{b}=0.4", "text")
    assert other.digest("text") != given.digest("text")
    assert other.rows("text", "train", 1).identity == train.identity, "other shares need no other rows and no other tokens"


@pytest.mark.parametrize(
    ("shares", "said"),
    [("{a}=0,{a}=1", "share 0 is not above 0"), ("{a}=-0.5,{a}=1", "share -0.5 is not above 0"), ("{a}=nan,{a}=1", "share nan is not above 0"),
     ("{a}=0.5,{a}", "each part of a mixture is FILE=SHARE"), ("{a}=0.5,none.jsonl=0.5", "none.jsonl: no such file")],
)  # fmt: skip
def test_a_bad_share_is_refused(tmp_path, shares, said):
    a = write(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=said):
        recipe.from_data(shares.format(a=a), "text")


def test_shares_in_a_recipe(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"text": f"a {number}"} for number in range(50)])
    own = tmp_path / "own.yaml"
    text = f"type: text\nsources:\n  - files: {a}\n    share: 2\n  - files: {a}\n    share: "
    own.write_text(text + "0.5\n")
    assert [part.share for part in recipe.load(str(own)).rows("text", "train", 1).parts] == [2, 0.5]
    own.write_text(text + "0\n")
    with pytest.raises(UserError, match="share 0 is not above 0"):
        recipe.load(str(own))
    own.write_text(text.replace("    share: 2\n", "") + "1\n")
    with pytest.raises(UserError, match="share: every source has one, or none has"):
        recipe.load(str(own))


def test_rows_held_back_for_validation_leave_the_parts_where_they_are(tmp_path):
    a, b = (write(tmp_path / f"{x}.jsonl", [{"text": f"{x} {number}"} for number in range(100)]) for x in "ab")
    rows = recipe.from_data(f"{a}=1,{b}=1", "text").rows("text", "train", 1)
    rows.hold_back(0.2, 1, "text")
    for part, letter in zip(rows.parts, "ab", strict=True):
        assert {rows.kept[number]["text"][0] for number in range(part.start, part.stop)} == {letter}
    assert rows.parts[1].stop == len(rows.kept)


OBJECTIVE = ["--objective", "mlm", "--vocab_size", "300"]


@pytest.mark.parametrize(
    ("name", "more"),
    [("pretrain", []), ("pretrain", OBJECTIVE), ("sft", []), ("dpo", []), ("dpo", ["--precompute_ref_log_probs", "true"])],
)
def test_every_stage_reads_a_mixture_and_records_it(run, chain, data, tmp_path, name, more):
    from tests.conftest import CHAIN, flags_of

    lines = (data / f"{CHAIN[name][0]}.jsonl").read_text().splitlines(keepends=True)
    for part, wanted in (("a", lines[::3]), ("b", lines[1::3])):
        (tmp_path / f"{part}.jsonl").write_text("".join(wanted))
    given = f"{tmp_path}/a.jsonl=0.8,{tmp_path}/b.jsonl=0.2"
    status, out, err = run(name, *flags_of(name, chain, data, tmp_path / "out"), *more, "--data", given)
    assert status == 0, out + err
    assert "mixture: a.jsonl " in out
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]
    assert [item["source"] for item in record["mixture"]] == ["a.jsonl", "b.jsonl"]
    assert [item["asked"] for item in record["mixture"]] == [0.8, 0.2]
    assert all(abs(item["got"] - item["asked"]) < 0.03 for item in record["mixture"]), "thirty rows divide no finer"
    assert record["mixture"][0]["epochs"] > 1 > record["mixture"][1]["epochs"]


def test_a_recipe_of_which_most_rows_are_dropped_says_what_would_keep_them(run, chain, data, tmp_path):
    from tests.conftest import flags_of

    rows = [{"prompt": f"Who saw {number}?", "completion": "The cat did. " * (4 if number % 10 else 1)} for number in range(60)]
    path = write(tmp_path / "a.jsonl", rows)
    status, out, err = run("sft", *flags_of("sft", chain, data, tmp_path / "out"), "--data", path, "--max_length", "40")
    assert status == 0, out + err
    (line,) = [line for line in out.splitlines() if "most rows are dropped" in line]
    length = int(line.partition("max_length ")[2].split()[0])
    assert 40 < length <= 64
    status, out, err = run("sft", *flags_of("sft", chain, data, tmp_path / "more"), "--data", path, "--max_length", length)
    assert status == 0, out + err
    assert "dropped: none" in out
    assert "most rows" not in out

"""make new: from somebody's files to recipes and a profile that fit together, or a list of faults and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline import ROOT
from pipeline.chain import check, profile, stages
from pipeline.commands._new import draft
from pipeline.data import recipe
from pipeline.system.errors import UserError


def written(house):
    return {str(path.relative_to(house)) for path in house.rglob("*") if path.is_file() and path.suffix == ".yaml"}


def node(house, name, of="mine"):
    return yaml.safe_load((house / "profiles" / of / f"{name}.yaml").read_text())


def faults_of(house, of="mine"):
    found = list(check.examine(profile.load(house / "profiles" / of), house / "runs"))
    return [fault for one in found for fault in one.faults], {one.name: one.told for one in found}


def test_three_files_become_a_profile_that_passes_the_check(run, house, data):
    status, out, err = run(
        "new", "--profile=mine", f"--text={data}/text.jsonl", f"--chats={data}/chats.jsonl", f"--pairs={data}/pairs.jsonl"
    )
    assert (status, err) == (0, "")
    assert written(house) == {f"recipes/mine-{word}.yaml" for word in ("text", "chats", "pairs")} | {
        f"profiles/mine/{name}.yaml" for name in ("pretrain", "sft", "sft-control", "dpo")
    }
    assert [node(house, name).get("parent") for name in ("pretrain", "sft", "dpo")] == [None, "pretrain", "sft"]
    assert node(house, "sft-control") | {"learning_rate": 0} == {
        "control_of": "sft",
        "init": "random",
        "method": "full",
        "learning_rate": 0,
    }
    assert {node(house, name)["max_length"] for name in ("pretrain", "sft", "dpo")} == {128}
    assert node(house, "sft")["chat_template"] == "chatml.jinja"
    faults, told = faults_of(house)
    assert faults == []
    held_out = {
        name: yaml.safe_load((house / "recipes" / f"mine-{name}.yaml").read_text())["held_out"]
        for name in ("text", "chats", "pairs")
    }
    assert all(share > 0.05 for share in held_out.values()), "few rows: more of them are held out"
    for name, word in {"pretrain": "documents", "sft": "conversations", "dpo": "pairs"}.items():
        kept, out_of = told[name].partition(": ")[2].split(" rows")[0], told[name].partition(", ")[2].split(" held")[0]
        assert f"{kept} {word} kept" in out, "what was said is what the check counts"
        assert f"{out_of} held out" in out
    assert out.splitlines()[-1].endswith("next: make PROFILE=mine")


def test_every_line_has_a_reason(run, house, data):
    given = ["--profile=mine", f"--text={data}/text.jsonl", f"--chats={data}/chats.jsonl", f"--pairs={data}/pairs.jsonl"]
    _, out, _ = run("new", *given, "--runs=my runs")
    assert out.splitlines()[-1].endswith("next: make PROFILE=mine RUNS='my runs'")
    files = [*(house / "profiles" / "mine").iterdir(), *(house / "recipes").iterdir()]
    assert len(files) == 7
    for file in files:
        lines = file.read_text().splitlines()
        assert lines[0].startswith("# ")
        assert all(" # " in line for line in lines[1:] if line[0].isalpha() and line != "sources:"), file


NODES = {
    "text": ["pretrain"], "chats": ["pretrain", "sft", "sft-control"], "pairs": ["pretrain", "dpo"],
    "text chats": ["pretrain", "sft", "sft-control"], "text pairs": ["pretrain", "dpo"], "chats pairs": ["pretrain", "sft", "sft-control", "dpo"],
    "base text": ["adopt", "pretrain"], "base chats": ["adopt", "sft", "sft-control"], "base pairs": ["adopt", "dpo"],
    "base text chats pairs": ["adopt", "pretrain", "sft", "sft-control", "dpo"],
}  # fmt: skip


@pytest.mark.parametrize("words", NODES)
def test_any_subset_will_do(run, house, data, chain, words):
    places = {"base": chain / "sft", **{name: data / f"{name}.jsonl" for name in ("text", "chats", "pairs")}}
    status, _, err = run("new", "--profile=mine", *(f"--{word}={places[word]}" for word in words.split()))
    assert (status, err) == (0, "")
    assert {path.stem for path in (house / "profiles" / "mine").iterdir()} == set(NODES[words])
    parents = [node(house, name).get("parent") for name in NODES[words] if name != "sft-control"]
    assert parents == [None, *(name for name in NODES[words] if name != "sft-control")][:-1][: len(parents)]
    if "base" in words:
        longest = {node(house, name)["max_length"] for name in NODES[words] if name not in ("adopt", "sft-control")}
        assert longest == {64}, "the base has no more positions"
        assert not any("chat_template" in node(house, name) for name in NODES[words]), "the base has its own"
    elif words.split()[-1] == "pairs" and "chats" not in words:
        assert node(house, "dpo")["method"] == "full"
    assert faults_of(house)[0] == []


def test_what_is_held_out_of_the_chats_is_held_out_of_their_text(run, house, data):
    run("new", "--profile=mine", f"--chats={data}/chats.jsonl")
    text, chats = recipe.load("mine-text"), recipe.load("mine-chats")
    said = [
        ["\n\n".join(turn["content"] for turn in row["messages"]) for row in chats.rows("messages", split, 42).kept]
        for split in recipe.SPLITS
    ]
    assert [[row["text"] for row in text.rows("text", split, 42).kept] for split in recipe.SPLITS] == said
    assert all(said)


def test_a_single_book_is_cut_so_that_some_of_it_is_held_out(run, house, tmp_path):
    paragraphs = [f"Chapter {number}. " + f"The {number}th house stood on a hill by the sea. " * 20 for number in range(80)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    status, out, _ = run("new", "--profile=mine", f"--text={tmp_path}/book.txt")
    assert (status, "cut in parts of about 1,000" in out) == (0, True)
    text = recipe.load("mine-text")
    train, held_out = (text.rows("text", split, 42) for split in recipe.SPLITS)
    assert held_out.kept
    assert sorted("\n\n".join(row["text"] for row in [*train.kept, *held_out.kept]).split("\n\n")) == sorted(paragraphs)
    assert train.origins[0].startswith(f"{tmp_path}/book.txt, part ")


def test_blanks_quotes_and_brackets_in_names_are_names(run, house, data, tmp_path):
    place = tmp_path / "my 'own' \"files\" # and: more"
    shutil.copytree(data, place)
    assert run("new", "--profile=mine", f"--text={place}/text.jsonl", f"--pairs={place}/*.jsonl")[0] == 2, "a glob of all types"
    status, _, err = run("new", "--profile=mine", f"--text={place}/text.jsonl", f"--chats={place}/chats.jsonl")
    assert (status, err) == (0, "")
    assert yaml.safe_load((house / "recipes" / "mine-text.yaml").read_text())["sources"] == [{"files": f"{place}/text.jsonl"}]
    assert faults_of(house)[0] == []


def test_a_mixture_becomes_a_source_for_each_of_its_parts(run, house, data, tmp_path):
    rows = (data / "chats.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("a", rows[:60]), ("b", rows[60:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    status, out, err = run("new", "--profile=mine", f"--chats={tmp_path}/a.jsonl=0.7,{tmp_path}/b.jsonl=0.3")
    assert (status, err) == (0, "")
    assert f"({len(rows)} as OpenAI messages)" in out
    parts = [{"files": f"{tmp_path}/a.jsonl", "share": 0.7}, {"files": f"{tmp_path}/b.jsonl", "share": 0.3}]
    assert yaml.safe_load((house / "recipes" / "mine-chats.yaml").read_text())["sources"] == parts
    retold = [part | {"holds": "messages"} for part in parts]
    assert yaml.safe_load((house / "recipes" / "mine-text.yaml").read_text())["sources"] == retold
    assert faults_of(house)[0] == []


def test_all_faults_of_all_files_are_told_at_once_and_nothing_is_written(run, house, data, tmp_path):
    chats = (data / "chats.jsonl").read_text().splitlines()
    chats[6] = '{"messages": "no list"}'
    (tmp_path / "chats.jsonl").write_text("\n".join(chats))
    pairs = (data / "pairs.jsonl").read_text().splitlines()
    pairs[2], pairs[8] = pairs[2].replace("rejected", "refused"), pairs[8][:-1]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    status, out, err = run(
        "new", "--profile=a b", f"--text={tmp_path}/none.txt", f"--chats={tmp_path}/chats.jsonl", f"--pairs={tmp_path}/pairs.jsonl",
        f"--base={data}", "--epochs=3",
    )  # fmt: skip
    assert (status, out) == (2, "")
    for told in ("PROFILE=a b: a name has", "none.txt: no such file", "chats.jsonl:7: expected a list", "pairs.jsonl:3: no format of preference",
                 "pairs.jsonl:9: not JSON", "config.json is missing", "--epochs: unknown flag"):  # fmt: skip
        assert told in err, told
    assert len(err.splitlines()) == 7
    assert written(house) == set()


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a b", "a/b", "$(x)", "-x"])
def test_a_name_that_is_none_is_refused(run, house, data, name):
    assert run("new", f"--profile={name}", f"--text={data}/text.jsonl")[0] == 2
    assert written(house) == set()


def test_what_is_there_is_never_overwritten(run, house, data):
    flags = ("--profile=mine", f"--text={data}/text.jsonl")
    (house / "recipes" / "mine-text.yaml").write_text("mine\n")
    status, _, err = run("new", *flags)
    assert (status, "mine-text.yaml: is there already" in err) == (2, True)
    assert (written(house), (house / "recipes" / "mine-text.yaml").read_text()) == ({"recipes/mine-text.yaml"}, "mine\n")
    (house / "recipes" / "mine-text.yaml").unlink()
    assert run("new", *flags)[0] == 0
    status, _, err = run("new", *flags)
    assert (status, "is there already" in err) == (2, True)


def test_it_writes_all_or_nothing(run, house, data, monkeypatch):
    flags = ("--profile=mine", f"--text={data}/text.jsonl", f"--chats={data}/chats.jsonl")
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda path, to: (_ for _ in ()).throw(OSError("full")) if to.name == "mine" else rename(path, to)
    )
    assert run("new", *flags)[0] == 1
    assert [path for path in house.rglob("*") if path.is_file()] == []
    monkeypatch.undo()


def test_a_write_that_was_killed_is_no_obstacle(tmp_path):
    files = {tmp_path / "mine-text.yaml": "type: text\n", tmp_path / "mine" / "one.yaml": "recipe: mine-text\n"}
    (tmp_path / "mine-text.yaml").write_text("type: text\n")
    assert draft.obstacles(files, tmp_path / "mine") == []
    draft.write(tmp_path / ".new", files, tmp_path / "mine")
    assert all(path.read_text() == text for path, text in files.items())
    assert not (tmp_path / ".new").exists()


def test_a_base_of_another_family_is_refused(run, house, data, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    from pipeline.models import tokenization

    BertForMaskedLM(
        BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    ).save_pretrained(tmp_path / "bert")
    tokenization.train(["a b c"], 300, 64).save_pretrained(tmp_path / "bert")
    status, _, err = run("new", "--profile=mine", f"--chats={data}/chats.jsonl", f"--base={tmp_path}/bert")
    assert (status, "is a model of family masked, but sft takes causal" in err) == (2, True)


def test_a_stage_of_ones_own_is_written_too(run, house, data, monkeypatch):
    """A stage that says what it is given as takes part, without any other file being touched."""
    shutil.copytree(ROOT / "stages", house / "stages", ignore=shutil.ignore_patterns("profiles", "__pycache__"))
    own = (ROOT / "stages" / "dpo.py").read_text().replace("class DPO", "class Other").replace("STAGE = DPO", "STAGE = Other")
    (house / "stages" / "zpo.py").write_text(own)
    monkeypatch.setattr(stages, "FOLDER", house / "stages")
    assert run("new", "--profile=mine", f"--text={data}/text.jsonl", f"--pairs={data}/pairs.jsonl")[0] == 0
    assert [node(house, name)["parent"] for name in ("dpo", "zpo")] == ["pretrain", "pretrain"]
    assert [node(house, name).get("release") for name in ("dpo", "zpo")] == [True, None], "one of two leaves is released"


def test_a_fault_in_the_third_file_is_told_before_the_first_stage_trains(run, house, data, tmp_path):
    pairs = shutil.copy(data / "pairs.jsonl", tmp_path / "pairs.jsonl")
    run("new", "--profile=mine", f"--text={data}/text.jsonl", f"--chats={data}/chats.jsonl", f"--pairs={pairs}")
    lines = Path(pairs).read_text().splitlines()
    lines[40] = json.dumps(json.loads(lines[40]) | {"chosen": 5})
    Path(pairs).write_text("\n".join(lines))
    first = house / "profiles" / "mine" / "pretrain.yaml"
    status, out, err = run("pretrain", "--config", first, "--output", house / "runs" / "pretrain", "--check", "yes")
    assert (status, "step" in out) == (2, False)
    assert f"{pairs}:41: " in err


@pytest.mark.slow
def test_the_chain_runs_to_the_end_and_each_node_has_figures(run, house, data):
    run("new", "--profile=mine", f"--text={data}/text.jsonl", f"--chats={data}/chats.jsonl", f"--pairs={data}/pairs.jsonl")
    runs = house / "runs" / "mine"
    small = ["--max_steps", 2, "--per_device_train_batch_size", 2]
    for name, kind in {"pretrain": "pretrain", "sft": "sft", "sft-control": "sft", "dpo": "dpo"}.items():
        status, _, err = run(kind, "--config", house / "profiles" / "mine" / f"{name}.yaml", "--output", runs / name, *small)
        assert (status, err) == (0, "")
    assert run("evaluate", "--runs", runs, "--rows", 8, "--resamples", 50, "--max_new_tokens", 4, "--samples", 1)[0] == 0
    summary = json.loads((runs / "evaluate.json").read_text())
    assert {name: block["rows"] > 0 and bool(block["figures"]) for name, block in summary["nodes"].items()} == {
        "pretrain": True,
        "sft": True,
        "dpo": True,
    }
    assert "sft-control" in summary["nodes"]["sft"]["models"]


def test_settings_that_make_no_sense_are_refused(tmp_path):
    for text, told in {
        "type: messages\ncut: 2000\nsources: [{files: x.jsonl}]": "cut: expected",
        "type: text\ncut: 5\nsources: [{files: x.jsonl}]": "cut: expected",
        "type: messages\nsources: [{files: x.jsonl, holds: preference}]": "holds: is for recipes of type text",
        "type: text\nsources: [{files: x.jsonl, holds: poems}]": "holds: expected one of",
    }.items():
        (tmp_path / "x.jsonl").write_text("{}")
        (tmp_path / "own.yaml").write_text(text.replace("x.jsonl", str(tmp_path / "x.jsonl")))
        with pytest.raises(UserError, match=told):
            recipe.load(str(tmp_path / "own.yaml"))

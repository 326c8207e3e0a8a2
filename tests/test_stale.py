"""Nothing is stale: what was altered is refused and named, what changed is told in plain words, the rest stays."""

import json
import shutil

import pytest

from pipeline.chain import manifest, stages
from pipeline.data import closure
from pipeline.models.tokenization import template_path
from pipeline.system import hashes
from tests.conftest import CHAIN, flags_of


def edit(folder):
    path = folder / "model.safetensors"
    found = bytearray(path.read_bytes())
    found[-1] ^= 1
    path.write_bytes(found)
    return "model.safetensors is not the file that was made"


def swap(folder):
    (folder / "tokenizer.json").write_text((folder / "tokenizer_config.json").read_text())
    return "tokenizer.json is not the file that was made"


def lose(folder):
    (folder / "generation_config.json").unlink()
    return "generation_config.json is missing"


def add(folder):
    (folder / "adapter_config.json").write_text("{}")
    return "adapter_config.json was added"


@pytest.mark.parametrize("harm", [edit, swap, lose, add])
@pytest.mark.parametrize("which", ["parent", "node", "measured", "verified"])
def test_what_was_altered_after_it_was_finished_is_refused(run, copy, data, tmp_path, which, harm):
    said = harm(copy / "sft")
    if which == "parent":
        status, _, err = run("dpo", *flags_of("dpo", copy, data))
    elif which == "node":
        status, _, err = run("sft", *flags_of("sft", copy, data))
    elif which == "measured":
        status, _, err = run("evaluate", "--runs", copy, "--output", tmp_path / "evaluate.json")
    else:
        status, _, err = run("verify", "--runs", copy)
    assert status == 2
    assert f"{copy / 'sft'}: {said}" in err
    assert "Traceback" not in err


def test_a_note_in_a_nodes_folder_disturbs_nobody(run, copy, data):
    (copy / "sft" / "notes.txt").write_text("look at step 300")
    assert "up to date" in run("dpo", *flags_of("dpo", copy, data))[1]


def test_a_swapped_parent_makes_its_child_stale(run, copy, data):
    """Another finished pretrain in the place of the first: whole, but not what SFT was made from."""
    assert run("pretrain", *flags_of("pretrain", copy, data, copy / "other"), "--seed", "5")[0] == 0
    shutil.rmtree(copy / "pretrain")
    shutil.copytree(copy / "other", copy / "pretrain")
    status, _, err = run("verify", "--runs", copy)
    assert status == 2
    assert f"{copy / 'sft'}: was made from another pretrain than {copy / 'pretrain'}; make sft again" in err
    status, out, _ = run("sft", *flags_of("sft", copy, data), "--why", "yes")
    assert status == 0
    assert "would be made again, since" in out
    assert "parent: pretrain" in out


def test_verify_reads_everything_again(run, copy, data, monkeypatch):
    status, out, err = run("verify", "--runs", copy)
    assert status == 0, err
    assert "3 nodes agree with their records and with each other" in out
    edit(copy / "dpo")
    good = manifest.read(copy / "dpo")["files"]["model.safetensors"]["sha256"]
    monkeypatch.setattr(hashes, "sha256", lambda path: good)  # a memory that was fooled
    assert run("verify", "--runs", copy)[0] == 2


@pytest.mark.parametrize("key", ["outputs", "inputs", "request"])
def test_verify_notices_a_forged_record(run, copy, key):
    record = manifest.read(copy / "sft")
    record[key] = {"stage": "sft"} if key == "request" else "0" * 64
    manifest.write_json(copy / "sft" / manifest.NAME, record)
    status, _, err = run("verify", "--runs", copy)
    assert status == 2
    assert f"{copy / 'sft' / 'manifest.json'}: {'outputs' if key == 'outputs' else 'inputs'} is not the digest" in err


def test_verify_compares_the_figures_with_the_nodes(run, copy, evaluated):
    shutil.copy(evaluated / "evaluate.json", copy)
    assert "3 nodes and evaluate.json agree" in run("verify", "--runs", copy)[1]
    summary = json.loads((copy / "evaluate.json").read_text())
    summary["measured"]["sft"] = "0" * 64
    manifest.write_json(copy / "evaluate.json", summary)
    assert "measured another sft" in run("verify", "--runs", copy)[2]


def test_a_copy_of_the_tree_is_as_good_as_the_first(run, chain, data, tmp_path):
    """Other inodes, other times, another folder, as after a checkout."""
    moved = tmp_path / "moved"
    shutil.copytree(chain, moved / "chain", copy_function=shutil.copy)
    shutil.copytree(data, moved / "data", copy_function=shutil.copy)
    for name in CHAIN:
        status, out, _ = run(name, *flags_of(name, moved / "chain", moved / "data"))
        assert status == 0
        assert "up to date" in out
    assert run("verify", "--runs", moved / "chain")[0] == 0


def test_exactly_the_stages_downstream_are_made_again(run, copy, data, tmp_path):
    mine = tmp_path / data.name
    shutil.copytree(data, mine)
    lines = (mine / "chats.jsonl").read_text().splitlines()
    (mine / "chats.jsonl").write_text("\n".join(lines[1:]) + "\n")
    said = {name: run(name, *flags_of(name, copy, mine))[1] for name in CHAIN}
    assert "up to date" in said["pretrain"]
    assert "recipe" in said["sft"]
    assert f"{data.name}/chats.jsonl was edited; what was there is kept in" in said["sft"]
    assert "parent: sft" in said["dpo"]
    assert all("up to date" in run(name, *flags_of(name, copy, mine))[1] for name in CHAIN)


def test_why_says_what_changed_and_does_nothing(run, copy, data, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    template = tmp_path / "other.jinja"
    template.write_text(template_path("chatml.jinja").read_text() + "\n")
    flags = flags_of("sft", copy, data)
    assert "is up to date" in run("sft", *flags, "--why", "yes")[1]
    flags[flags.index("--max_steps") + 1] = "5"
    status, out, _ = run("sft", *flags, "--learning_rate", "1e-3", "--chat_template", template, "--why", "yes")
    assert status == 0
    lines = [line.removeprefix("sft").strip() for line in out.splitlines()]
    assert lines == [
        "would be made again, since",
        "chat_template: another text",
        "learning_rate: 0.001, was 0.0002",
        "max_steps: 5, was 4",
    ]
    assert "has not run yet: there is no" in run("sft", *flags_of("sft", copy, data, tmp_path / "none"), "--why", "yes")[1]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_changed_code_is_told_and_counts_only_with_strict(run, copy, data, monkeypatch):
    flags = flags_of("dpo", copy, data)
    assert "up to date" in run("dpo", *flags, "--strict", "yes")[1]
    found, versions = manifest.sources, manifest.versions
    monkeypatch.setattr(manifest, "sources", lambda *scripts: found(*scripts) | {"pipeline/data/tokens.py": "0" * 64})
    monkeypatch.setattr(manifest, "versions", lambda: versions() | {"torch": "9.9"})
    assert "up to date" in run("dpo", *flags)[1]
    out = run("dpo", *flags, "--why", "yes")[1]
    assert "is up to date" in out
    assert "only with STRICT=1 would count: our code: pipeline/data/tokens.py was edited" in out
    assert f"only with STRICT=1 would count: torch: 9.9, was {versions()['torch']}" in out
    status, out, err = run("dpo", *flags, "--strict", "yes")
    assert status == 0, err
    assert "is made again, since our code: pipeline/data/tokens.py was edited; torch: 9.9" in out
    assert "up to date" in run("dpo", *flags, "--strict", "yes")[1]


@pytest.mark.parametrize("kind", ["pretrain", "sft", "dpo"])
def test_strict_counts_only_what_a_stage_can_reach(kind):
    """The report's page and what measures a finished model are no part of how it was made."""
    stage = stages.load(kind)
    options, _ = stage.split({"recipe": "world"})
    found = manifest.sources(stage.script, *stage.modules(options))
    assert {
        f"stages/{kind}.py",
        "pipeline/chain/life.py",
        "pipeline/training/loop.py",
        "pipeline/data/tokens.py",
    } <= found.keys()
    assert ("pipeline/objectives/causal.py" in found) == (kind == "pretrain")
    assert "pipeline/objectives/mlm.py" not in found
    assert [name for name in found if name.startswith("stages/")] == [f"stages/{kind}.py"]
    others = (
        "report/",
        "hub/",
        "commands/",
        "tasks/",
        "evaluation/table",
        "evaluation/measure",
        "evaluation/subject",
        "evaluation/comparisons",
    )
    assert not [name for name in found if name.startswith(tuple(f"pipeline/{other}" for other in others))]
    assert not [name for name in found if name.startswith("pipeline/evaluation/metrics/") and not name.endswith("__init__.py")]


def test_what_only_a_type_checker_imports_is_not_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    (tmp_path / "pipeline").mkdir()
    for name in ("seen", "unseen", "inner", "other"):
        (tmp_path / "pipeline" / f"{name}.py").write_text("")
    (tmp_path / "pipeline" / "seen.py").write_text(
        "if TYPE_CHECKING:\n    from pipeline import unseen\nelse:\n    import pipeline.other\ndef f():\n    from pipeline import inner\n"
    )
    (tmp_path / "mine.py").write_text("from pipeline.seen import f\n")
    (tmp_path / "page.jinja").write_text("")
    found = manifest.sources(tmp_path / "mine.py")
    assert list(found) == ["mine.py", "page.jinja", "pipeline/inner.py", "pipeline/other.py", "pipeline/seen.py"]


def test_a_half_finished_stage_goes_on_through_a_change_of_code_unless_it_is_strict(run, copy, data):
    record = manifest.read(copy / "sft")
    (copy / "sft" / manifest.NAME).unlink()
    record["code"]["files"]["pipeline/data/tokens.py"] = "0" * 64
    manifest.claim(copy / "sft", record | {"processes": 2})
    out = run("sft", *flags_of("sft", copy, data))[1]
    assert "goes on although since it began our code: pipeline/data/tokens.py was edited" in out
    assert "was begun by 2 processes, now 1" in out
    (copy / "sft" / manifest.NAME).unlink()
    manifest.claim(copy / "sft", record | {"processes": 1})
    assert "what was there is kept in" in run("sft", *flags_of("sft", copy, data), "--strict", "yes")[1]


def test_the_way_a_file_is_read_counts(run, copy, data, tmp_path):
    """The same bytes are one document under .txt, and ninety under .jsonl."""
    shutil.copy(data / "text.jsonl", tmp_path / "text.txt")
    flags = flags_of("pretrain", copy, data)
    flags[flags.index("--data") + 1] = tmp_path / "text.txt"
    assert "would be made again" in run("pretrain", *flags, "--why", "yes")[1]


def test_a_recipes_relative_imports_count(tmp_path, monkeypatch):
    monkeypatch.setattr(closure, "FOLDER", tmp_path / "data_recipes")
    closure.FOLDER.mkdir()
    (closure.FOLDER / "helper.py").write_text("ROWS = ['a']\n")
    for line in (
        "from .helper import ROWS",
        "from . import helper",
        "from data_recipes.helper import ROWS",
        "import data_recipes.helper",
    ):
        (closure.FOLDER / "mine.py").write_text(line + "\n")
        assert closure.FOLDER / "helper.py" in closure.files(closure.FOLDER / "mine.py"), line


def test_a_record_of_another_version_is_a_plain_line(run, copy, data):
    record = manifest.read(copy / "sft")
    manifest.write_json(copy / "sft" / manifest.NAME, record | {"version": 1})
    status, _, err = run("sft", *flags_of("sft", copy, data))
    assert status == 2
    assert "written by another version of tristage" in err
    assert (copy / "sft" / "model.safetensors").exists()


@pytest.mark.parametrize("flag", ["--strict", "--why", "--upstream"])
def test_yes_and_no_are_spelt_out(run, copy, data, flag):
    status, _, err = run("sft", *flags_of("sft", copy, data), flag, "1")
    assert status == 2
    assert f"{flag}: expected yes or no, found '1'" in err


def test_verify_says_what_it_cannot_compare(run, copy, data, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(copy / "pretrain", bare)
    (bare / manifest.NAME).unlink()
    flags = flags_of("sft", copy, data, tmp_path / "runs" / "sft")
    flags[flags.index("--parent") + 1] = bare
    assert run("sft", *flags)[0] == 0
    assert run("verify", "--runs", tmp_path / "runs")[0] == 0
    edit(bare)
    status, _, err = run("verify", "--runs", tmp_path / "runs")
    assert status == 2
    assert f"was made from another model than {bare}" in err
    shutil.rmtree(bare)
    status, out, _ = run("verify", "--runs", tmp_path / "runs")
    assert status == 0
    assert f"its parent {bare} is not there to be compared" in out
    (copy / "pretrain" / manifest.NAME).unlink()
    manifest.claim(copy / "pretrain", {"inputs": "x"})
    assert "is half made" in run("verify", "--runs", copy)[2]

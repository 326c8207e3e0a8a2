"""The graph carries what the shipped stages don't ask for: parents by role of different families, and nodes that hand on rows.

Two small stages (tests/stages) are added to a copy of the checkout, as somebody would add them.
"""

import json
import os
import re
import shutil
import signal
import time

import pytest

from tests.checkout import copied, runs, write_profile
from tests.forked import call, start

pytestmark = pytest.mark.slow  # `make prove`: two minutes of a core

SIZES = "hidden_size: 32\nnum_hidden_layers: 1\nnum_attention_heads: 2\nvocab_size: 400\nmax_length: 64\n"
SHORT = "per_device_train_batch_size: 4\nlogging_steps: 1\n"
STEPS = 60
NODES = {
    "pretrain": f"recipe: animals\nmax_steps: 6\n{SIZES}{SHORT}",
    "mlm": f"stage: pretrain\nobjective: mlm\nrecipe: animals\nmax_steps: 6\n{SIZES}{SHORT}",
    "mlm_other": f"stage: pretrain\nobjective: mlm\nrecipe: animals\nmax_steps: 8\n{SIZES}{SHORT}",
    "imitate": f"parent: pretrain\nteacher: mlm\nrecipe: animals\nmax_steps: {STEPS}\nsave_steps: 20\n{SHORT}",
    "choose": "parent: pretrain\nrecipe: animals\n",
    "pretrain_chosen": f"parent: pretrain\ndata: choose\nmax_length: 64\nmax_steps: 6\n{SHORT}",
}
RECIPE = """
ANIMALS = "cat dog hen owl fox bee ant cow elk eel".split()

def text(split, seed):
    pairs = [(a, b) for a in ANIMALS for b in ANIMALS if a != b]
    for a, b in pairs[::10] if split == "held_out" else [pair for number, pair in enumerate(pairs) if number % 10]:
        yield {"text": f"The {a} saw the {b}. The {b} ran from the {a} and was glad of it."}
"""


def record(folder):
    return json.loads((folder / "manifest.json").read_text())


def script(checkout, node, *more, out=None):
    """Run the script of a node; return (status, what it printed, what it complained about)."""
    return call(checkout, *flags(checkout, node, *more, out=out))


def flags(checkout, node, *more, out=None):
    folder = checkout / "stages" / "profiles" / "two"
    kind = "pretrain" if node.startswith("mlm") else node.partition("-")[0]
    output = out or runs(checkout, "two") / node
    return [f"stages/{kind}.py", "--config", folder / f"{node}.yaml", "--output", output, *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout in which make made every node, and measured them."""
    checkout = copied(tmp_path_factory.mktemp("two") / "checkout")
    (checkout / "data_recipes" / "animals.py").write_text(RECIPE)
    write_profile(checkout, "two", **NODES)
    status, out, err = call(checkout, "make", PROFILE="two")
    assert status == 0, out + err
    return checkout


@pytest.fixture
def checkout(made, tmp_path):
    return shutil.copytree(made, tmp_path / "checkout")


def edit(checkout, node, old, new):
    path = checkout / "stages" / "profiles" / "two" / f"{node}.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_roles_of_a_profile_are_parents_of_the_record(made):
    found = runs(made, "two")
    parents = {entry["role"]: entry for entry in record(found / "imitate")["parents"]}
    assert {role: entry["node"] for role, entry in parents.items()} == {"parent": "pretrain", "teacher": "mlm"}
    assert {role: entry["outputs"] for role, entry in parents.items()} == {
        "parent": record(found / "pretrain")["outputs"], "teacher": record(found / "mlm")["outputs"],
    }  # fmt: skip
    assert record(found / "mlm")["family"] == "masked"
    assert record(found / "imitate")["family"] == "causal"
    assert "stages/imitate.py" in record(found / "imitate")["code"]["files"]


def test_it_is_measured_shown_and_verified_like_any_other(made):
    found = runs(made, "two")
    summary = json.loads((found / "evaluate.json").read_text())
    assert summary["missing"] == []
    assert summary["nodes"]["imitate"]["primary"]["against"] == "pretrain"
    assert "choose" not in summary["nodes"]  # it has no model
    status, out, err = call(made, "verify", PROFILE="two")
    assert status == 0, out + err
    status, out, err = call(made, "report", PROFILE="two")
    assert status == 0, out + err
    page = (found / "report.html").read_text()
    assert "Imitation" in page
    proofs = page.partition('id="masks"')[2]
    assert "Can't be made again" not in proofs
    for node in ("pretrain", "mlm", "imitate", "pretrain-chosen"):
        proof = re.split("<h3[^>]*>", proofs.partition(f">{node}")[2])[0]
        assert "tokens in its first step: the same." in proof, node


def test_nothing_changed_means_nothing_is_made(made):
    status, out, err = call(made, "make", PROFILE="two")
    assert status == 0, err
    for node in NODES:
        assert f"up to date: runs/two/{node.replace('_', '-')} " in out
    assert "evaluate up to date" in out


def test_another_teacher_repeats_it_and_why_names_the_role(checkout):
    folder = runs(checkout, "two")
    old, other = record(folder / "imitate"), record(folder / "mlm-other")
    edit(checkout, "imitate", "teacher: mlm", "teacher: mlm-other")
    status, out, err = call(checkout, "why", PROFILE="two", STAGE="imitate")
    assert status == 0, err
    assert "imitate  would be made again, since" in out
    change = f"teacher: pretrain {other['outputs'][:8]}, was pretrain {record(folder / 'mlm')['outputs'][:8]}"
    assert [line.split(maxsplit=1)[1].strip() for line in out.splitlines() if "outputs" in line or ", was " in line] == [change]
    status, out, err = call(checkout, "make", PROFILE="two", GOAL="imitate")
    assert status == 0, err
    assert f"{change}; what was there is kept in" in out
    new = record(folder / "imitate")
    assert new["outputs"] != old["outputs"]  # the teacher is really heard
    assert [entry["node"] for entry in new["parents"]] == ["pretrain", "mlm-other"]
    assert record(folder / ".aside" / f"imitate-{old['inputs'][:8]}") == old


def test_a_teacher_that_was_made_again_repeats_it_too(checkout):
    folder = runs(checkout, "two")
    edit(checkout, "mlm", "max_steps: 6", "max_steps: 7")
    status, out, err = call(checkout, "make", PROFILE="two", GOAL="imitate")
    assert status == 0, err
    assert f"teacher: pretrain {record(folder / 'mlm')['outputs'][:8]}, was pretrain" in out
    assert "pretrain up to date" in out


def test_it_is_killed_and_goes_on_to_the_same_bytes(checkout):
    folder = runs(checkout, "two")
    whole = record(folder / "imitate")
    log = [json.loads(line)["loss"] for line in (folder / "imitate" / "log.jsonl").read_text().splitlines()]
    again = folder.parent / "again" / "imitate"
    roles = ["--parent", folder / "pretrain", "--teacher", folder / "mlm"]
    words = flags(checkout, "imitate", *roles, out=again)
    with start(checkout, *words) as process:
        until = time.time() + 120
        while not (again / "log.jsonl").exists() or '"step": 30' not in (again / "log.jsonl").read_text():
            assert process.poll() is None, process.stderr.read()
            assert time.time() < until
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (again / "manifest.json").exists()
    status, out, err = call(checkout, *words)
    assert status == 0, err
    assert "goes on from checkpoint-" in out
    assert record(again)["outputs"] == whole["outputs"]
    assert record(again)["inputs"] == whole["inputs"]  # another folder is no other input
    assert [json.loads(line)["loss"] for line in (again / "log.jsonl").read_text().splitlines()] == log


def test_a_teacher_of_another_family_is_refused_in_one_line(checkout):
    folder = runs(checkout, "two")
    out = folder.parent / "new" / "imitate"
    status, _, err = script(checkout, "imitate", "--parent", folder / "pretrain", "--teacher", folder / "pretrain", out=out)
    assert status == 2
    assert err.splitlines() == [
        f"imitate: --teacher {folder / 'pretrain'}: pretrain made a model of family causal, but imitate takes masked as its teacher"
    ]
    assert not out.exists()
    edit(
        checkout, "imitate", "teacher: mlm", "teacher: pretrain"
    )  # and before anything is trained, in the check of the profile
    status, out, err = call(checkout, "check", PROFILE="two")
    assert status == 2
    faults = [line for line in err.splitlines() if "teacher" in line]
    assert len(faults) == 1
    assert "imitate.yaml: teacher: pretrain gives causal, but imitate takes masked" in faults[0]


def test_a_missing_teacher_is_named(checkout):
    folder = runs(checkout, "two")
    words = ["stages/imitate.py", "--parent", folder / "pretrain", "--output", folder.parent / "new" / "imitate"]
    status, _, err = call(checkout, *words)
    assert status == 2
    assert "--teacher is missing; imitate needs a masked model" in err
    edit(checkout, "imitate", "teacher: mlm\n", "")  # two fit
    status, _, err = call(checkout, "make", PROFILE="two", GOAL="imitate")
    assert status == 2
    assert "imitate.yaml: teacher: is left out, and mlm and mlm-other fit; name one" in err


def test_a_role_may_be_left_out_where_one_node_fits(checkout):
    edit(checkout, "imitate", "teacher: mlm\n", "")
    (checkout / "stages" / "profiles" / "two" / "mlm-other.yaml").unlink()
    status, out, err = call(checkout, "why", PROFILE="two", STAGE="imitate")
    assert status == 0, err
    assert "imitate  is up to date" in out


def test_a_node_hands_on_rows_and_its_child_reads_them(made):
    import pyarrow.parquet

    folder = runs(made, "two")
    chosen, child = record(folder / "choose"), record(folder / "pretrain-chosen")
    assert (chosen["family"], chosen["rows_type"]) == ("rows", "text")
    assert set(chosen["files"]) == {"train.parquet", "held_out.parquet"}
    read = pyarrow.parquet.ParquetFile(folder / "choose" / "train.parquet").read().num_rows
    assert read == chosen["recipe"]["kept"] == child["recipe"]["kept"]
    assert read < chosen["recipe"]["rows"]
    (data,) = [entry for entry in child["parents"] if entry["role"] == "data"]
    assert (data["node"], data["outputs"]) == ("choose", chosen["outputs"])
    assert child["recipe"]["digest"] == chosen["outputs"]
    summary = json.loads((folder / "evaluate.json").read_text())
    assert summary["nodes"]["pretrain-chosen"]["rows"] == 9  # what `choose` held out


def test_other_rows_repeat_the_child_and_why_names_data(checkout):
    folder = runs(checkout, "two")
    old = record(folder / "choose")["outputs"]
    edit(checkout, "choose", "recipe: animals", "recipe: animals\nshare: 0.4")
    status, out, err = call(checkout, "make", PROFILE="two", GOAL="choose")
    assert status == 0, err
    assert "share: 0.4, was 0.5; what was there is kept in" in out
    status, out, err = call(checkout, "why", PROFILE="two", STAGE="pretrain-chosen")
    assert status == 0, err
    new = record(folder / "choose")["outputs"]
    assert f"data: choose {new[:8]}, was choose {old[:8]}" in out
    status, out, err = call(checkout, "make", PROFILE="two", GOAL="pretrain-chosen")
    assert status == 0, err
    assert f"data: choose {new[:8]}, was choose {old[:8]}" in out
    assert record(folder / "pretrain-chosen")["recipe"]["digest"] == new


def test_equal_rows_repeat_nothing(checkout):
    """Digests are of what is handed on: rows that come out the same leave the child as it is."""
    folder = runs(checkout, "two")
    before = record(folder / "pretrain-chosen")
    edit(checkout, "choose", "recipe: animals", "recipe: animals\nshare: 0.499")
    status, out, err = call(checkout, "make", PROFILE="two", GOAL="pretrain-chosen")
    assert status == 0, err
    assert "share: 0.499, was 0.5" in out
    assert "pretrain-chosen up to date" in out
    assert record(folder / "pretrain-chosen") == before


def test_rows_that_were_altered_are_refused(checkout):
    path = runs(checkout, "two") / "choose" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    status, _, err = script(checkout, "pretrain-chosen")
    assert status == 2
    assert "Traceback" not in err
    assert "train.parquet" in err


def test_rows_of_another_type_are_refused_in_one_line(checkout):
    folder = runs(checkout, "two")
    words = ["--parent", folder / "pretrain", "--data", folder / "choose", "--output", folder.parent / "new" / "sft"]
    status, _, err = call(checkout, "stages/sft.py", *words, "--chat_template", "chatml.jinja")
    assert status == 2
    assert err.splitlines() == [f"sft: {folder / 'choose'}: hands on rows of type text, but messages is wanted"]
    write_profile(checkout, "two", sft="parent: pretrain\ndata: choose\nchat_template: chatml.jinja\n")
    status, _, err = call(checkout, "check", PROFILE="two")
    assert status == 2
    assert "sft.yaml: data: choose hands on rows of type text, but sft reads messages" in err


def test_a_node_with_a_model_is_no_data_and_one_with_rows_no_parent(checkout):
    folder = runs(checkout, "two")
    new = folder.parent / "new"
    status, _, err = call(checkout, "stages/pretrain.py", "--data", folder / "mlm", "--output", new / "pretrain")
    assert status == 2
    assert f"{folder / 'mlm'}: a node that hands on a model of family masked, not rows" in err
    status, _, err = call(checkout, "stages/choose.py", "--parent", folder / "choose", "--output", new / "choose")
    assert status == 2
    assert "choose made rows of type text, but choose takes causal as its parent\n" in err


def test_a_folder_of_runs_that_was_moved_still_knows_its_parents_and_its_rows(checkout):
    (checkout / "runs").rename(checkout / "elsewhere")
    for node in NODES:
        status, out, err = call(checkout, "make", PROFILE="two", RUNS="elsewhere", GOAL=node.replace("_", "-"))
        assert status == 0, err
        assert f"up to date: elsewhere/two/{node.replace('_', '-')} " in out
    (checkout / "elsewhere" / "two" / "evaluate.json").unlink()
    status, out, err = call(checkout, "evaluate", PROFILE="two", RUNS="elsewhere")
    assert status == 0, out + err
    nodes = json.loads((checkout / "elsewhere" / "two" / "evaluate.json").read_text())["nodes"]
    assert nodes["pretrain-chosen"]["rows"] == 9

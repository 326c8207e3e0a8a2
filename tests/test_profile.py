"""A profile is the graph: names and kinds, parents by role, controls, what is left out, what is refused; every shipped one."""

import importlib.util

import pytest

from pipeline import rewards
from pipeline.chain import check, finished, manifest, profile
from pipeline.system.errors import UserError

PROFILES = profile.names()


def written(folder, **nodes):
    folder.mkdir(exist_ok=True)
    for name, text in nodes.items():
        (folder / f"{name.replace('_', '-')}.yaml").write_text(text)
    return folder


def refused(folder, *words):
    with pytest.raises(UserError) as caught:
        profile.load(folder)
    told = "\n".join(caught.value.faults)
    for word in words:
        assert word in told
    return caught.value.faults


@pytest.mark.parametrize("name", PROFILES)
def test_every_shipped_profile_is_a_graph_without_faults(name):
    from pipeline.system import config

    whole = profile.load(profile.find(name))
    assert whole.nodes
    assert whole.unresolved == {}
    needs = [rewards.declared(rule).needs for node in whole.nodes.values() for rule in node.settings.get("rewards", {})]
    if absent := {module for need in needs for module in need if importlib.util.find_spec(module) is None}:
        pytest.skip(f"{', '.join(absent)}: not installed (make setup-data)")
    for node in whole.nodes.values():
        assert node.signature is not None
        assert config.check(node.settings, node.origins, node.stage.Options, node.stage.library_of(node.settings)) == []


def test_there_are_profiles():
    assert len(PROFILES) >= 8


def test_a_node_is_named_by_its_file_and_its_stage_by_the_name_up_to_the_first_dash(tmp_path):
    whole = profile.load(
        written(
            tmp_path / "p",
            pretrain="",
            sft_days="parent: pretrain",
            nights="stage: sft\nparent: sft-days",
            dpo_2="parent: nights",
        )
    )
    assert {name: node.kind for name, node in whole.nodes.items()} == {
        "pretrain": "pretrain", "sft-days": "sft", "nights": "sft", "dpo-2": "dpo",
    }  # fmt: skip
    assert list(whole.nodes) == ["pretrain", "sft-days", "nights", "dpo-2"]
    assert whole.waits_for("nights") == ["sft-days"]
    assert whole.children("sft-days") == ["nights"]


def test_a_parent_may_be_left_out_where_exactly_one_node_fits(tmp_path):
    whole = profile.load(
        written(tmp_path / "p", pretrain="", sft="", finetune_a="task: classification\nrecipe: genres\nparent: pretrain")
    )
    assert whole.nodes["sft"].parents == {"parent": "pretrain"}
    assert whole.nodes["pretrain"].parents == {}, "a parent that a stage can do without is not made up"


def test_a_control_or_a_descendant_is_nobodys_parent_by_default(tmp_path):
    whole = profile.load(
        written(tmp_path / "p", pretrain="", sft="", sft_control="control_of: sft\ninit: random", dpo="parent: sft")
    )
    assert whole.nodes["sft"].parents == {"parent": "pretrain"}
    assert whole.nodes["sft-control"].parents == {"parent": "pretrain"} or whole.nodes["sft-control"].parents == {}


def test_where_several_nodes_fit_the_candidates_are_named(tmp_path):
    whole = profile.load(written(tmp_path / "p", pretrain="", pretrain_b="", sft=""))
    (fault,) = whole.unresolved["sft"]
    assert "sft.yaml: parent: is left out, and pretrain and pretrain-b fit; name one" in fault


def test_where_no_node_fits_the_family_is_named(tmp_path):
    whole = profile.load(written(tmp_path / "p", pretrain="objective: mlm\nrecipe: classics", sft=""))
    (fault,) = whole.unresolved["sft"]
    assert "no node gives a model of family causal" in fault


def test_a_control_takes_every_key_from_its_node_except_its_own(tmp_path):
    folder = written(tmp_path / "p", pretrain="", sft="parent: pretrain\nrecipe: classics\nlearning_rate: 1e-3\nmax_length: 64",
                     sft_control="control_of: sft\ninit: random\nlearning_rate: 2e-3")  # fmt: skip
    node = profile.load(folder).nodes["sft-control"]
    assert node.kind == "sft"
    assert node.settings == {"recipe": "classics", "learning_rate": 0.002, "max_length": 64, "init": "random"}
    assert node.parents == {"parent": "pretrain"}
    assert node.origins["max_length"].endswith("sft.yaml")
    assert node.origins["learning_rate"].endswith("sft-control.yaml")


def test_a_control_that_does_without_something_takes_no_model_for_it(tmp_path):
    varied = "stage: finetune\nparent: a\ntask: classification\nrecipe: genres\naugmentation: back_translation\ntranslator: b\n"
    folder = written(tmp_path / "p", a="stage: pretrain\nobjective: mlm", b="stage: pretrain\nobjective: span_corruption", c=varied,
                     c_control='control_of: c\naugmentation: ""')  # fmt: skip
    nodes = profile.load(folder).nodes
    assert nodes["c"].parents == {"parent": "a", "translator": "b"}
    assert nodes["c-control"].parents == {"parent": "a"}


def test_a_control_comes_after_what_it_controls(tmp_path):
    order = list(
        profile.load(written(tmp_path / "p", pretrain="", a="stage: sft\ncontrol_of: sft\ninit: random", sft="")).nodes
    )
    assert order.index("a") > order.index("sft")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("control_of: sfd", ["x.yaml: control_of: sfd: no such node"]),
        ("control_of: sft\nstage: dpo", ["control_of names sft, a node of sft"]),
        ("stage: sfd", ["x.yaml: stage: sfd: no such script in stages/; did you mean sft?"]),
        ("stage: sft\nparent: pretrian", ["x.yaml: parent: pretrian: no such node"]),
        ("stage: sft\nrelease: 7", ["x.yaml: release: expected yes or no, found 7"]),
        ("- a", ["x.yaml: expected `key: value` lines"]),
    ],
)
def test_what_is_refused(tmp_path, text, words):
    refused(written(tmp_path / "p", pretrain="", sft="parent: pretrain", x=text), *words)


def test_a_broken_file_is_no_missing_node_and_a_control_repeats_no_fault(tmp_path):
    (tmp_path / "pretrain.yaml").write_text("recipe: world\n  max_steps: 2\n")
    (tmp_path / "sft.yaml").write_text("parent: pretran\nlerning_rate: 1\n")
    (tmp_path / "sft-control.yaml").write_text("control_of: sft\ninit: random\n")
    (tmp_path / "dpo.yaml").write_text("parent: pretrain\n")
    with pytest.raises(UserError) as error:
        profile.load(tmp_path)
    assert error.value.faults == (
        f"{tmp_path}/pretrain.yaml: not YAML: mapping values are not allowed here (line 2, column 12)",
        f"{tmp_path}/sft.yaml: parent: pretran: no such node, folder or hub id; did you mean pretrain?",
        f"{tmp_path}/sft.yaml: lerning_rate: unknown key; did you mean learning_rate?",
    )


def test_all_faults_of_a_graph_at_once(tmp_path):
    faults = refused(written(tmp_path / "p", a="stage: sfd", b="stage: dpp", evaluat="stage: sft\nparent: nobody"))
    assert len(faults) == 3


@pytest.mark.parametrize("name", ["test", "report", "push-data", "all", "help", "make"])
def test_a_node_named_like_a_make_target_is_refused(tmp_path, name):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / f"{name}.yaml").write_text("stage: sft")
    refused(tmp_path / "p", f"a node can't be named {name}")


def test_settings_of_commands_are_no_nodes(tmp_path):
    whole = profile.load(written(tmp_path / "p", pretrain="", evaluate="rows: 3", push="license: mit"))
    assert list(whole.nodes) == ["pretrain"]


def test_parents_that_go_round_in_a_circle(tmp_path):
    refused(written(tmp_path / "p", sft="parent: dpo", dpo="parent: sft"), "go round in a circle", "sft", "dpo")


def test_a_control_of_a_control_is_refused(tmp_path):
    refused(
        written(tmp_path / "p", pretrain="", sft="", a="control_of: sft\ninit: random", b="control_of: a"),
        "is a control itself",
    )


def test_an_unknown_profile_is_refused_with_the_nearest_names():
    with pytest.raises(UserError, match="PROFILE=tinny: no such profile in stages/profiles; did you mean tiny"):
        profile.find("tinny")


def test_an_empty_folder_is_no_profile(tmp_path):
    (tmp_path / "p").mkdir()
    refused(tmp_path / "p", "no node")


def test_a_parent_may_be_a_folder_or_a_hub_id(tmp_path):
    from pipeline.chain import request, stages

    folder = written(tmp_path / "p", a="stage: sft\nparent: some/where", b="stage: sft\nparent: runs/tiny/pretrain")
    whole = profile.load(folder)
    assert whole.nodes["a"].parents == {"parent": "some/where"}
    read = request.read(stages.load("sft"), ["--config", str(folder / "b.yaml"), "--output", str(tmp_path / "runs" / "b")])
    assert read.parents == {"parent": "runs/tiny/pretrain"}


def made(runs, name, parent=""):
    """Write the record of a finished node."""
    (runs / name).mkdir(parents=True)
    record = {
        "inputs": "i", "outputs": "o", "stage": name, "node": name, "family": "causal", "control_of": "", "files": {}, "recipe": {},
        "parents": [{"role": "parent", "path": parent, "beside": True}] * bool(parent),
    }  # fmt: skip
    manifest.write_json(runs / name / manifest.NAME, record)


def test_the_node_that_is_released_is_the_profile_s_even_before_it_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profile, "FOLDER", tmp_path / "profiles")
    (tmp_path / "profiles").mkdir()
    written(tmp_path / "profiles" / "mine", pretrain="", sft="parent: pretrain", dpo="parent: sft")
    runs = tmp_path / "runs" / "mine"
    made(runs, "pretrain")
    made(runs, "sft", "pretrain")
    with pytest.raises(UserError) as caught:
        finished.to_release(runs)
    (fault,) = caught.value.faults
    assert "dpo is the node that is released, and is not finished; make PROFILE=mine" in fault
    assert fault.endswith(" dpo, or say which with STAGE=sft")
    assert finished.released(runs).name == "sft", "whoever talks to it may have what is there"
    assert "is meant, since dpo, the node that is released, is not finished" in capsys.readouterr().out
    made(runs, "dpo", "sft")
    assert finished.to_release(runs).name == finished.released(runs).name == "dpo"
    assert capsys.readouterr().out == ""


def test_without_a_profile_the_only_leaf_of_what_is_finished_is_released(tmp_path):
    made(tmp_path, "a")
    made(tmp_path, "b", "a")
    assert finished.to_release(tmp_path).name == "b"
    made(tmp_path, "c", "a")
    with pytest.raises(UserError, match="b and c could be meant"):
        finished.to_release(tmp_path)


def test_rows_from_a_node_and_a_recipe_at_once_are_refused(tmp_path):
    nodes = {"pretrain": "", "sft": "parent: pretrain\nrecipe: classics"}
    refused(written(tmp_path / "p", **nodes, x="stage: sft\ndata: pretrain\nrecipe: world"), "x.yaml: data and recipe")
    written(tmp_path / "p", x="control_of: sft\ndata: some/where")
    assert profile.load(tmp_path / "p").nodes["x"].parents["data"] == "some/where", (
        "a control may read other rows than its node"
    )


def too_long(folder):
    """Return what the check of a profile says of rows that are longer than their model has positions."""
    whole = profile.load(folder)
    options = {name: node.stage.split(node.settings) for name, node in whole.nodes.items()}
    return [told for name, node in whole.nodes.items() for told in check._length(whole, node, *options[name], options)]


@pytest.mark.parametrize("name", PROFILES)
def test_no_row_of_a_shipped_profile_is_longer_than_its_model_has_positions(name):
    assert too_long(profile.find(name)) == []


def test_pictures_are_not_measured_by_the_positions_of_texts(tmp_path):
    pretrain = "stage: pretrain\nrecipe: emoji\nobjective: clip\nmax_length: 16"
    seen = "stage: finetune\nparent: pretrain\nrecipe: emoji\ntask: image_classification"
    read = "stage: finetune\nparent: pretrain\nrecipe: verses\ntask: classification"
    assert (
        too_long(written(tmp_path / "p", pretrain=pretrain, a=seen, b="stage: zero_shot\nparent: pretrain\nrecipe: emoji"))
        == []
    )
    (told,) = too_long(written(tmp_path / "q", pretrain="recipe: verses\nmax_length: 16\nobjective: mlm", a=read))
    assert "a.yaml: max_length: 256 is more than the 16 positions of pretrain" in told
    (tmp_path / "q" / "pretrain.yaml").write_text("recipe: emoji\nobjective: clip\nmax_length: 16\ntext_tower: some/where")
    assert too_long(tmp_path / "q") == [], "positions are those of the parent's texts"

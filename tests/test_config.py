import dataclasses

import pytest

from pipeline.chain import profile
from pipeline.commands import compare_alignment, compare_objectives, compare_refusals, evaluate, push
from pipeline.data import recipe
from pipeline.system import config
from pipeline.system.config import check, fits, normal, only, option, read_flags, read_profile
from pipeline.system.errors import UserError

PROFILES = sorted(profile.FOLDER.rglob("*.yaml"))
SETTINGS = {
    command.SETTINGS: command.Options for command in (compare_alignment, compare_objectives, compare_refusals, evaluate, push)
}


@dataclasses.dataclass(frozen=True)
class Options:
    recipe: str = option("world", "recipe")
    rank: int = option(4, "rank")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("2e-5", 2e-5), (3.0, 3), ("3", 3), ("-.5", -0.5), ("3 cats", "3 cats"), (True, True), (["1e3"], [1000])],
)
def test_normal_form(given, wanted):
    assert normal(given) == wanted
    assert type(normal(given)) is type(wanted)


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [(1, float, True), (True, int, False), ("a", int, False), (None, int | None, True), ([1.0], list[float] | None, True),
     (["a"], list[float], False), (1.5, int, False), ({"a": 1}, dict[str, int] | str | None, True)],
)  # fmt: skip
def test_a_value_fits_its_annotation(value, hint, wanted):
    assert fits(value, hint) is wanted


@dataclasses.dataclass(frozen=True)
class Long:
    max_length: int = option(64, "length", at_least=8)


def test_an_options_own_bound_counts():
    assert check({"max_length": 4}, {}, Long, None) == ["defaults: max_length: expected at least 8, found 4"]
    assert check({"max_length": 1}, {}, Options, "trl.SFTConfig") == ["defaults: max_length: expected at least 2, found 1"]


def test_every_fault_is_found_at_once_with_the_nearest_name():
    values = {"lerning_rate": 1, "rank": "four", "output_dir": "x", "num_train_epochs": "many"}
    faults = check(values, dict.fromkeys(values, "p.yaml"), Options, "transformers.TrainingArguments")
    assert faults[0] == "p.yaml: lerning_rate: unknown key; did you mean learning_rate?"
    assert faults[1] == "p.yaml: rank: expected int, found 'four'"
    assert faults[2] == "p.yaml: output_dir: can't be set here; use --output"
    assert faults[3] == "p.yaml: num_train_epochs: expected float, found 'many'"
    assert len(faults) == 4


def test_flags():
    flags, faults = read_flags(["--parent", "a", "--rank=8", "--learning_rate", "2e-5", "stray", "--last"])
    assert flags == {"parent": "a", "rank": 8, "learning_rate": 2e-5}
    assert faults == ["command line: 'stray' belongs to no flag; write --key value", "command line: --last needs a value"]


def test_a_flag_given_twice_is_refused():
    flags, faults = read_flags(["--parent", "a", "--parent=b", "--rank", "8", "--rank", "9"])
    assert flags == {"parent": "a", "rank": 8}
    assert faults == ["command line: --parent is given twice: a and b", "command line: --rank is given twice: 8 and 9"]


def test_paths_stay_as_they_are_for_every_role():
    flags, _ = read_flags(
        ["--teacher", "1e3", "--output", "2024", "--data=--odd", "--runs", "007", "--other", "1e3"], ("teacher",)
    )
    assert flags == {"teacher": "1e3", "output": "2024", "data": "--odd", "runs": "007", "other": 1000}


def test_a_command_of_few_flags_names_them():
    flags, faults = only(("runs", "node"), ["--runs", "r", "--rnus", "r"])
    assert flags["runs"] == "r"
    assert faults == ["command line: --rnus: unknown flag; known are --runs, --node"]


def test_a_profile_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "p.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match=r"p.yaml: expected `key: value` lines, found a list"):
        read_profile(tmp_path / "p.yaml")
    (tmp_path / "q.yaml").write_text("a: 1\n  b: 2\n")
    with pytest.raises(UserError, match=r"q.yaml: not YAML: mapping values are not allowed here \(line 2, column 4\)$"):
        read_profile(tmp_path / "q.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 200_000, "nested too deeply"),
        ("a: &a [x, x]\n" + "".join(f"{n}: &{n} [*{p}, *{p}, *{p}, *{p}]\n" for p, n in zip("abcdefghijkl", "bcdefghijklm", strict=True)), "values of it"),
        ("a: &a [*a]\n", "within what it names"),
    ],
)  # fmt: skip
def test_a_profile_that_explodes_is_refused(tmp_path, text, said):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"p.yaml: not YAML: .*{said}"):
        read_profile(tmp_path / "p.yaml")


def test_aliases_of_a_profile_are_read(tmp_path):
    (tmp_path / "p.yaml").write_text("a: &a {x: 1}\nb: *a\n")
    assert read_profile(tmp_path / "p.yaml") == {"a": {"x": 1}, "b": {"x": 1}}


def test_there_are_profiles():
    assert len(PROFILES) >= 12


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_profile_parses(path):
    assert read_profile(path), "a profile that says nothing is not needed"
    if path.name in SETTINGS:
        assert config.check(read_profile(path), {}, SETTINGS[path.name], None) == []
    else:
        node = profile.read_node(path)
        assert config.check(node.settings, node.origins, node.stage.Options, node.stage.library_of(node.settings)) == []


@pytest.mark.parametrize(
    "path", sorted(p for p in recipe.FOLDER.iterdir() if p.suffix in (".py", ".yaml") and p.stem != "__init__")
)
def test_every_recipe_loads(path):
    assert recipe.load(path.stem).name == path.stem


def test_help_names_every_option_and_the_library():
    text = config.explain("sft", "story", Options, "trl.SFTConfig")
    assert "rank" in text
    assert "trl.SFTConfig" in text


def test_an_option_of_ours_that_another_one_leaves_unread_is_refused_unless_it_is_inherited():
    from pipeline.training.adapter import AdapterOptions

    def faults(values, **origins):
        return config.check(values, origins, AdapterOptions, None)

    assert faults({"method": "full", "r": 8}) == ["defaults: r: is read only with method: lora; leave it out"]
    assert faults({"r": 8}) == faults({"method": "lora", "r": 8}) == []
    chosen = {"method": "full", "r": 8}
    assert faults(chosen, method="command line", r="sft.yaml") == []  # the profile's rank is of no use here, and harmless
    assert faults(chosen, method="sft-control.yaml", r="sft.yaml") == []
    assert faults(chosen, method="sft.yaml", r="command line") != []


@pytest.mark.parametrize(
    ("library", "values", "said"),
    [
        ("trl.SFTConfig", {"save_steps": -1}, "save_steps: -1: expected more than 0"),
        ("trl.SFTConfig", {"gradient_checkpointing_kwargs": {"a": 1}}, "is read only with gradient_checkpointing: true"),
        ("trl.SFTConfig", {"gradient_checkpointing_kwargs": {"a": 1}, "gradient_checkpointing": True}, ""),
        ("trl.SFTConfig", {"warmup_steps": 3, "lr_scheduler_type": "constant"}, "is read only with a schedule that warms up"),
        ("trl.SFTConfig", {"warmup_steps": 0, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": {}}, ""),
        ("trl.SFTConfig", {"logging_nan_inf_filter": True}, "can't be set here"),
        ("trl.SFTConfig", {"train_sampling_strategy": "length"}, "expected random or sequential or group_by_length"),
        ("trl.DPOConfig", {"loss_weights": [1, -1]}, "loss_weights: [1, -1]: expected at least 0"),
        ("trl.DPOConfig", {"ref_model_sync_steps": 8}, "is read only with sync_ref_model: true"),
        ("trl.DPOConfig", {"discopop_tau": 0.1, "loss_type": ["discopop", "sft"]}, ""),
        ("trl.RLOOConfig", {"num_completions_to_print": 4}, "is read only with log_completions: true"),
    ],
)
def test_keys_that_nothing_reads_or_that_wreck_are_refused_and_others_are_not(library, values, said):
    found = config.check(values, {}, Options, library)
    assert (len(found) == 1 and said in found[0]) if said else found == []


def test_a_key_of_a_profile_may_be_left_unread_by_a_flag():
    given = {"save_steps": 100, "save_strategy": "no"}
    assert config.check(given, {"save_steps": "sft.yaml", "save_strategy": "command line"}, Options, "trl.SFTConfig") == []
    assert config.check(given, {"save_steps": "sft.yaml", "save_strategy": "sft.yaml"}, Options, "trl.SFTConfig") != []


def test_a_stage_refuses_what_it_alone_does_not_read():
    found = config.check(
        {"pad_to_multiple_of": 8}, {}, Options, "trl.SFTConfig", ignores={"pad_to_multiple_of": "rows are packed"}
    )
    assert found == ["defaults: pad_to_multiple_of: can't be set here; rows are packed"]

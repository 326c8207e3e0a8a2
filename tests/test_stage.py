"""The life of a stage: what is current, what repeats, what is refused; a person's mistakes end with status 2."""

import json
import shutil

import pytest

from pipeline.chain import manifest, profile
from pipeline.data import closure
from pipeline.data import recipe as recipes
from pipeline.models.tokenization import template_path
from pipeline.system import hashes
from tests.conftest import SMALL, flags_of


def without(flag, flags):
    at = flags.index(flag)
    return flags[:at] + flags[at + 2 :]


def test_the_chain_hands_on_whole_models(chain):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("pretrain", "sft", "dpo"):
        record = manifest.read(chain / name)
        assert record["stage"] == name
        assert record["node"] == name
        assert record["files"] == hashes.files(chain / name)
        assert 80 < record["recipe"]["rows"] == record["recipe"]["kept"] < 90  # the others are held out
        assert record["tokens"] > 0
        assert record["peak_memory_bytes"] > 0
        assert not list((chain / name).glob("checkpoint-*"))
        assert not (chain / name / "README.md").exists()
        model = AutoModelForCausalLM.from_pretrained(chain / name)
        assert str(model.dtype) == "torch.float32"
        assert AutoTokenizer.from_pretrained(chain / name).eos_token_id in model.generation_config.eos_token_id
        assert json.loads((chain / name / "log.jsonl").read_text().splitlines()[0])["step"] == 1
    for name, parent in (("sft", "pretrain"), ("dpo", "sft")):
        assert manifest.read(chain / name)["parents"][0]["outputs"] == manifest.read(chain / parent)["outputs"]
    assert AutoTokenizer.from_pretrained(chain / "dpo").chat_template
    assert not AutoTokenizer.from_pretrained(chain / "pretrain").chat_template
    for name in ("sft", "dpo"):
        assert str(chain) not in (chain / name / "adapter" / "adapter_config.json").read_text()


@pytest.mark.parametrize("name", ["pretrain", "sft", "dpo"])
def test_nothing_changed_means_nothing_is_done(run, copy, data, name, monkeypatch):
    before = manifest.read(copy / name)
    for path in copy.rglob("*"):
        path.touch()
    monkeypatch.setattr("pipeline.system.config.library_class", lambda path: pytest.fail(f"imported {path}"))
    status, out, _ = run(name, *flags_of(name, copy, data))
    assert status == 0
    assert "up to date" in out
    assert manifest.read(copy / name) == before


def test_another_input_repeats_the_stage_and_keeps_the_old_one(run, copy, data):
    old = manifest.read(copy / "sft")
    status, out, _ = run("sft", *flags_of("sft", copy, data), "--r", "4")
    assert status == 0
    assert "what was there is kept in" in out
    assert manifest.read(copy / ".aside" / f"sft-{old['inputs'][:8]}") == old
    assert manifest.read(copy / "sft")["config"]["r"] == 4
    status, out, _ = run("dpo", *flags_of("dpo", copy, data))  # its parent is another model now
    assert status == 0
    assert "what was there is kept in" in out


def test_a_stage_made_on_your_own_data_is_kept_when_it_is_upstream(run, copy, data):
    """`make sft DATA=mine`, then `make dpo`: make checks sft without DATA, and it stays the one that was asked for."""
    status, out, _ = run("sft", "--output", copy / "sft", "--upstream", "yes")
    assert status == 0
    assert "keeps --chat_template chatml.jinja, --max_length 64, --max_steps 4" in out
    assert "up to date" in out


def test_editing_the_template_repeats_sft_and_not_pretraining(run, copy, data, tmp_path):
    template = tmp_path / "mine.jinja"
    text = template_path("chatml.jinja").read_text()
    template.write_text(text)
    flags = [*flags_of("sft", copy, data), "--chat_template", template]
    assert "up to date" in run("sft", *flags)[1]  # the same template by another name
    template.write_text(text.replace("'\\n'", "' '", 1))
    assert "what was there is kept in" in run("sft", *flags)[1]
    assert "up to date" in run("pretrain", *flags_of("pretrain", copy, data))[1]


def test_keys_that_change_nothing_learned_do_not_repeat_a_stage(run, copy, data):
    status, out, _ = run("pretrain", *flags_of("pretrain", copy, data), "--save_steps", "100", "--report_to", "none")
    assert status == 0
    assert "up to date" in out


def test_a_stage_starts_from_any_model_folder(run, tmp_path, data):
    """A folder that is none of ours, without chat tokens, of another architecture, that can't be packed."""
    from transformers import OPTConfig, OPTForCausalLM

    from pipeline.models import tokenization

    made = tokenization.train(["The cat saw the dog."], 300, 64)
    bare = tmp_path / "opt"
    OPTForCausalLM(
        OPTConfig(vocab_size=len(made), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32,
                  max_position_embeddings=64)
    ).save_pretrained(bare)  # fmt: skip
    made.save_pretrained(bare)
    flags = ["--parent", bare, "--output", tmp_path / "out", "--data", data / "chats.jsonl", *SMALL["sft"][2:]]
    status, _, err = run("sft", *flags)
    assert status == 2
    assert "has no chat template; set `chat_template: chatml.jinja`" in err
    status, _, err = run("sft", *flags, "--chat_template", "chatml.jinja")
    assert status == 0, err
    status, _, err = run("sft", *flags, "--chat_template", "chatml.jinja", "--max_length", "128")
    assert status == 2
    assert "max_length: 128 does not fit the parent, which has 64 positions" in err


def test_pretraining_goes_on_from_a_parent(run, chain, data, tmp_path):
    status, _, err = run("pretrain", "--parent", chain / "pretrain", *flags_of("pretrain", chain, data, tmp_path / "more"))
    assert status == 0, err
    assert manifest.read(tmp_path / "more")["parents"][0]["stage"] == "pretrain"


def test_a_parent_of_another_family_is_refused(run, tmp_path, data, copy):
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(
        BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(tmp_path / "bert")
    flags = ["--output", tmp_path / "out", "--data", data / "chats.jsonl", *SMALL["sft"]]
    status, _, err = run("sft", "--parent", tmp_path / "bert", *flags)
    assert status == 2
    assert "BertForMaskedLM is a model of family masked, but sft takes causal" in err
    record = manifest.read(copy / "pretrain")
    manifest.write_json(copy / "pretrain" / manifest.NAME, record | {"family": "masked"})
    status, _, err = run("sft", "--parent", copy / "pretrain", *flags)
    assert status == 2
    assert "family masked, but sft takes causal" in err
    assert not (tmp_path / "out").exists()


def test_all_faults_at_once_and_nothing_is_harmed(run, tmp_path, chain):
    (tmp_path / "sft.yaml").write_text("lerning_rate: 1e-3\nr: many\nmax_steps: soon\nrecipe: world\n")
    status, _, err = run(
        "sft", "--config", tmp_path / "sft.yaml", "--parent", tmp_path / "none", "--output", tmp_path / "out", "stray"
    )
    lines = err.splitlines()
    assert status == 2
    assert "sft: command line: 'stray' belongs to no flag; write --key value" in lines
    assert f"sft: {tmp_path}/sft.yaml: lerning_rate: unknown key; did you mean learning_rate?" in lines
    assert f"sft: {tmp_path}/sft.yaml: r: expected int, found 'many'" in lines
    assert f"sft: {tmp_path}/sft.yaml: max_steps: expected int, found 'soon'" in lines
    assert any("none: no such folder" in line for line in lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("pretrain", ["--recipe", "wrold"], "recipe: wrold: no such recipe"),
        ("pretrain", ["--data", "none.jsonl"], "none.jsonl: no such file"),
        ("pretrain", ["--config", "none.yaml"], "none.yaml: no such profile file"),
        ("pretrain", ["--objective", "clm"], "objective: clm: no such objective"),
        ("pretrain", ["--lr_scheduler_type", "steep"], "refuses the configuration: steep is not a valid SchedulerType"),
        ("sft", ["--chat_template", "none.jinja"], "chat_template: none.jinja: no such file"),
        ("sft", ["--max_length", "4"], "no row is left for training"),
        ("sft", ["--max_length", "1"], "max_length: expected at least 2, found 1"),
        ("sft", ["--max_length", "128"], "max_length: 128 does not fit the parent, which has 64 positions"),
        ("sft", ["--r", "0"], "r: expected at least 1, found 0"),
        ("sft", ["--seed", "2024-01-01"], "seed: expected int, found '2024-01-01'"),
        ("pretrain", ["--num_attention_heads", "3"], "transformers builds no causal model of it"),
        ("sft", ["--method", "lara"], "method: expected lora or full or rows or projector or cross_attention, found 'lara'"),
        ("sft", ["--init", "zero"], "init: expected parent or random or random_tower, found 'zero'"),
    ],
)
def test_bad_input_is_one_plain_line(run, chain, data, tmp_path, name, change, complaint):
    flags = flags_of(name, chain, data, tmp_path / "out")
    if change[0] == "--recipe":
        flags = without("--data", flags)
    status, _, err = run(name, *flags, *change)
    assert status == 2, err
    assert complaint in err
    assert "Traceback" not in err


def test_data_of_the_wrong_type_names_its_columns(run, chain, data, tmp_path):
    flags = flags_of("dpo", chain, data, tmp_path / "out")
    flags[flags.index("--data") + 1] = data / "chats.jsonl"
    status, _, err = run("dpo", *flags)
    assert status == 2
    assert "no format of preference: found columns {messages}, expected {" in err
    assert "{chosen_messages, rejected_messages}" in err


def test_a_folder_that_is_not_ours_is_left_alone(run, chain, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    status, _, err = run("sft", *flags_of("sft", chain, data, tmp_path))
    assert status == 2
    assert "not empty and not the folder of a node; give another folder or move it away" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_typo_that_only_the_library_notices_puts_the_finished_stage_back(run, copy, data):
    before = manifest.read(copy / "sft")
    status, out, _ = run("sft", *flags_of("sft", copy, data), "--lr_scheduler_type", "steep")
    assert status == 2
    assert "put back what was moved aside" in out
    assert manifest.read(copy / "sft") == before


def test_a_half_finished_stage_on_your_own_data_is_kept_when_it_is_upstream(run, copy, data):
    record = manifest.read(copy / "sft")
    (copy / "sft" / manifest.NAME).unlink()
    manifest.claim(copy / "sft", record | {"processes": 1})
    status, out, _ = run("sft", "--output", copy / "sft", "--upstream", "yes")
    assert status == 0
    assert "keeps --chat_template chatml.jinja" in out
    assert manifest.read(copy / "sft")["outputs"] == record["outputs"]


def test_the_default_schedule_fits_any_data(run, data, tmp_path):
    flags = [flag for flag in SMALL["pretrain"] if flag not in ("--lr_scheduler_type", "constant")]
    status, _, err = run("pretrain", "--output", tmp_path / "out", "--data", data / "text.jsonl", *flags)
    assert status == 0, err
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert rates[0] > 0


def test_a_torn_record_is_named(run, copy, data):
    (copy / "sft" / manifest.NAME).write_text('{"stage": "sf')
    status, _, err = run("sft", *flags_of("sft", copy, data))
    assert status == 2
    assert "not a whole JSON file" in err


def test_an_unfinished_parent_is_refused(run, copy, data, tmp_path):
    (copy / "pretrain" / manifest.NAME).unlink()
    manifest.claim(copy / "pretrain", {"inputs": "x"})
    status, _, err = run("sft", *flags_of("sft", copy, data, tmp_path / "out"))
    assert status == 2
    assert "that node is not finished; run it again and it goes on where it was" in err


def test_rows_that_do_not_fit_are_counted_in_the_record(run, chain, tmp_path, data):
    rows = (data / "chats.jsonl").read_text()
    long = json.dumps({"messages": [{"role": "user", "content": "why " * 200}, {"role": "assistant", "content": "so"}]}) + "\n"
    empty = json.dumps({"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": " "}]}) + "\n"
    (tmp_path / "mixed.jsonl").write_text(long + empty + rows)
    flags = flags_of("sft", chain, data, tmp_path / "out")
    flags[flags.index("--data") + 1] = tmp_path / "mixed.jsonl"
    status, out, _ = run("sft", *flags)
    assert status == 0
    record = manifest.read(tmp_path / "out")["recipe"]
    assert record["dropped"] == {"no assistant text": 1, "longer than max_length 64": 1}
    assert record["rows"] == record["kept"] + 2
    assert "1 longer than max_length 64" in out
    assert "OpenAI messages" in out


def test_full_fine_tuning_against_a_frozen_copy(run, chain, data, tmp_path):
    for name in ("sft", "dpo"):
        status, _, err = run(name, *flags_of(name, chain, data, tmp_path / name), "--method", "full")
        assert status == 0, err
        assert not (tmp_path / name / "adapter").exists()


def test_adoption_makes_a_node_of_a_folder(run, chain, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(chain / "sft", bare)
    (bare / manifest.NAME).unlink()
    status, _, err = run("adopt", "--model", bare, "--output", tmp_path / "out")
    assert status == 0, err
    assert manifest.read(tmp_path / "out")["stage"] == "adopt"
    assert manifest.read(tmp_path / "out")["starts_from"] == "nothing"
    status, _, err = run("adopt", "--output", tmp_path / "none")
    assert status == 2
    assert "give either model" in err


def test_evaluation_of_a_chain(run, evaluated, tmp_path):
    found = json.loads((evaluated / "evaluate.json").read_text())
    assert list(found["nodes"]) == ["pretrain", "sft", "dpo"]
    assert found["missing"] == []
    assert [block["models"]["pretrain"]["role"] for block in list(found["nodes"].values())[:2]] == ["node", "parent"]
    for block in found["nodes"].values():
        for figures in block["figures"].values():
            for figure in figures.values():
                assert figure["low"] <= figure["value"] <= figure["high"]
                assert figure["n"] > 0
    assert "bits_per_byte" in found["nodes"]["pretrain"]["figures"]
    flags = ["--runs", evaluated, "--resamples", "100", "--max_new_tokens", "8"]
    status, out, err = run("evaluate", *flags)
    assert status == 0, err
    assert "up to date" in out
    status, _, err = run("evaluate", *flags, "--sample", "2")
    assert status == 2
    assert "sample: unknown key; did you mean samples?" in err
    status, _, err = run("evaluate", "--runs", tmp_path / "none")
    assert status == 2
    assert "none: no finished node; run make first" in err


def test_a_mixture_is_not_evaluated(run, copy, data):
    assert run("pretrain", *flags_of("pretrain", copy, data), "--seed", "7")[0] == 0
    status, _, err = run("evaluate", "--runs", copy)
    assert status == 2
    assert f"{copy / 'sft'}: was made from another pretrain than {copy / 'pretrain'}; make sft again" in err


@pytest.mark.parametrize("flag", ["--parent", "--data", "--output", "--max_steps"])
def test_a_flag_given_twice_is_refused(run, copy, data, flag):
    flags = flags_of("sft", copy, data)
    first = flags[flags.index(flag) + 1]
    status, _, err = run("sft", *flags, f"{flag}=7")
    assert status == 2
    assert f"command line: {flag} is given twice: {first} and 7" in err


def test_without_a_length_rows_are_as_long_as_the_parent_has_positions(run, chain, data, tmp_path):
    status, out, err = run("sft", *without("--max_length", flags_of("sft", chain, data, tmp_path / "sft")))
    assert status == 0, err
    assert "max_length 64, since the parent has 64 positions" in out
    assert manifest.read(tmp_path / "sft")["outputs"] == manifest.read(chain / "sft")["outputs"]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write the files of a profile `mine`, {name: text}, where profiles lie."""
    monkeypatch.setattr(profile, "FOLDER", tmp_path / "profiles")

    def write(files):
        folder = tmp_path / "profiles" / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text)
        return folder

    return write


TEACHER = """
import dataclasses
import json
import sys
from pipeline.chain.stage import Stage
from pipeline.system.config import option

class Distil(Stage):
    title, about = "Distillation", "A student."
    takes = {"parent": ("causal",), "teacher": ("causal", "masked")}
    optional = OPTIONAL

    @dataclasses.dataclass(frozen=True)
    class Options:
        weight: float = option(1.0, "of the teacher")

    def train(self, run):
        run.result.mkdir()
        (run.result / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **run.parents}))

STAGE = Distil
"""


@pytest.fixture
def distil(tmp_path, monkeypatch):
    """A stage with two parents, in a folder of stages of its own; yield what writes it."""
    from pipeline.chain import stages

    folder = tmp_path / "stages"
    shutil.copytree(stages.FOLDER, folder, ignore=shutil.ignore_patterns("profiles", "__pycache__"))
    monkeypatch.setattr(stages, "FOLDER", folder)
    stages.load.cache_clear()

    def write(optional=()):
        (folder / "distil.py").write_text(TEACHER.replace("OPTIONAL", repr(optional)))
        stages.load.cache_clear()

    yield write
    stages.load.cache_clear()


def test_a_parent_by_its_role(run, copy, distil):
    distil()
    flags = ["--parent", copy / "sft", "--output", copy / "student"]
    status, _, err = run("distil", *flags)
    assert status == 2
    assert "command line: --teacher is missing; distil needs a causal or masked model" in err
    status, _, err = run("distil", *flags, "--teacher", copy / "dpo", f"--teacher={copy / 'sft'}")
    assert status == 2
    assert f"command line: --teacher is given twice: {copy / 'dpo'} and {copy / 'sft'}" in err
    status, _, err = run("distil", *flags, "--teacher", copy / "none")
    assert status == 2
    assert f"--teacher {copy / 'none'}: no such folder; make none first, or give a model folder or hub id" in err
    status, _, err = run("distil", *flags, "--teacher", copy / "dpo")
    assert status == 0, err
    record = manifest.read(copy / "student")
    assert [(entry["role"], entry["node"], entry["beside"]) for entry in record["parents"]] == [
        ("parent", "sft", True),
        ("teacher", "dpo", True),
    ]
    assert record["request"]["parents"]["teacher"] == {"stage": "dpo", "outputs": manifest.read(copy / "dpo")["outputs"]}
    assert "up to date" in run("distil", *flags, "--teacher", copy / "dpo")[1]
    out = run("distil", *flags, "--teacher", copy / "pretrain", "--why", "yes")[1]
    assert "teacher: pretrain" in out
    before = manifest.read(copy / "dpo")
    manifest.write_json(copy / "dpo" / manifest.NAME, before | {"family": "vectors"})
    status, _, err = run("distil", *flags, "--teacher", copy / "dpo")
    assert status == 2
    assert "dpo made a model of family vectors, but distil takes causal or masked as its teacher" in err


def test_a_role_may_be_left_out_where_the_stage_says_so(run, copy, distil):
    distil(("teacher",))
    status, _, err = run("distil", "--parent", copy / "sft", "--output", copy / "student")
    assert status == 0, err
    assert [entry["role"] for entry in manifest.read(copy / "student")["parents"]] == ["parent"]


def small(name, **others):
    """The text of a node's file, with the keys of the small chain."""
    keys = dict(zip((key[2:] for key in SMALL[name][::2]), SMALL[name][1::2], strict=True)) | others
    return "".join(f"{key}: {value}\n" for key, value in keys.items())


def at(folder, copy, name):
    return ["--config", folder / f"{name}.yaml", "--output", copy / name]


def test_overrides_are_kept_upstream_and_shared_with_the_control(run, copy, data, written):
    """`make sft DATA=… ARGS=…`, then `make`: sft stays, and its control reads the same rows with the same flags."""
    folder = written({
        "pretrain": small("pretrain"), "sft": small("sft", parent="pretrain"),
        "sft-control": "control_of: sft\ninit: random\nmethod: full\nlearning_rate: 1e-3\n",
    })  # fmt: skip
    mine = data / "chats.jsonl"
    status, _, err = run("sft", *at(folder, copy, "sft"), "--data", mine, "--learning_rate", "5e-4", "--warmup_steps", "1")
    assert status == 0, err
    status, out, _ = run("sft", *at(folder, copy, "sft"), "--upstream", "yes")
    assert status == 0
    assert (
        f"keeps --learning_rate 0.0005, --warmup_steps 1, --data {mine}, as requested; `make sft` returns to the profile" in out
    )
    assert "up to date" in out
    for upstream in ([], ["--upstream", "yes"]):
        status, out, err = run("sft", *at(folder, copy, "sft-control"), *upstream)
        assert status == 0, err
        assert f"takes --warmup_steps 1, --data {mine} from sft, which it is a control of" in out
        record = manifest.read(copy / "sft-control")
        assert record["control_of"] == "sft"
        assert record["starts_from"] == "random"
        assert record["recipe"]["data"] == str(mine)
        assert record["config"]["warmup_steps"] == 1
        assert record["config"]["learning_rate"] == 1e-3  # its own file
        assert record["config"]["max_length"] == 64
        assert record["overrides"] == {"flags": {}, "data": None, "parents": {}}
    assert "up to date" in out

    shutil.copy(mine, other := folder / "other.jsonl")
    other.write_text("".join(other.read_text().splitlines(keepends=True)[1:]))
    assert run("sft", *at(folder, copy, "sft"), "--data", other)[0] == 0
    status, out, _ = run("sft", *at(folder, copy, "sft-control"), "--upstream", "yes", "--why", "yes")
    assert status == 0
    assert f"takes --data {other} from sft" in out
    assert "warmup_steps: not set, was 1" in out
    assert "other.jsonl is new" in out


def test_what_a_controls_own_file_says_stays_its_own(run, copy, data, written, tmp_path, monkeypatch):
    folder = written({
        "pretrain": small("pretrain"), "sft": small("sft", parent="pretrain"),
        "sft-control": "control_of: sft\ninit: random\nmethod: full\nrecipe: theirs\nmax_steps: 1\n",
    })  # fmt: skip
    monkeypatch.setattr(closure, "FOLDER", tmp_path / "recipes")
    monkeypatch.setattr(recipes, "FOLDER", closure.FOLDER)
    closure.FOLDER.mkdir()
    (closure.FOLDER / "theirs.yaml").write_text(f"type: messages\nsources:\n  - files: {data / 'chats.jsonl'}\n")
    flags = ["--data", data / "chats.jsonl", "--max_steps", "2"]
    assert run("sft", *at(folder, copy, "sft"), *flags)[0] == 0
    status, out, _ = run("sft", *at(folder, copy, "sft-control"), "--upstream", "yes", "--why", "yes")
    assert status == 0
    assert "takes" not in out
    status, _, err = run("sft", *at(folder, copy, "sft-control"))
    assert status == 0, err
    record = manifest.read(copy / "sft-control")
    assert record["recipe"]["name"] == "theirs"
    assert record["config"]["max_steps"] == 1
    other = tmp_path / "other.jsonl"
    other.write_text("".join((data / "chats.jsonl").read_text().splitlines(keepends=True)[1:]))
    status, _, err = run("sft", *at(folder, copy, "sft-control"), "--data", other)  # its own command line comes first
    assert status == 0, err
    assert manifest.read(copy / "sft-control")["recipe"]["data"] == str(other)


@pytest.mark.slow
def test_next_is_a_line_that_can_be_run(run, copy, data, written, tmp_path):
    """The first child in the profile, RUNS with its blanks in quotes; else the evaluation."""
    import shlex

    folder = written({"pretrain": small("pretrain"), "sft": small("sft", parent="pretrain"), "dpo": small("dpo", parent="sft")})
    runs = tmp_path / "my runs" / "mine"
    runs.mkdir(parents=True)
    shutil.copytree(copy / "pretrain", runs / "pretrain")
    status, out, err = run("sft", *at(folder, runs, "sft"), "--data", data / "chats.jsonl")
    assert status == 0, err
    line = out.partition("; next: ")[2].strip()
    assert shlex.split(line) == ["make", "PROFILE=mine", f"RUNS={tmp_path / 'my runs'}", "dpo"]
    status, out, err = run("dpo", *at(folder, runs, "dpo"), "--data", data / "pairs.jsonl")
    assert status == 0, err
    line = out.partition("; next: ")[2].strip()
    assert shlex.split(line) == ["make", "PROFILE=mine", f"RUNS={tmp_path / 'my runs'}", "evaluate"]
    loose = tmp_path / "a b" / "sft"
    status, out, err = run("sft", *flags_of("sft", copy, data, loose))
    assert status == 0, err
    line = shlex.split(out.partition("; next: ")[2])
    assert line == ["python", "-m", "pipeline.commands.evaluate", "--runs", str(loose.parent)]
    status, out, err = run("evaluate", *line[3:], "--rows", "8", "--max_new_tokens", "2", "--resamples", "20")
    assert status == 0, err
    assert shlex.split(out.rpartition("; next: ")[2])[-1] == str(loose.parent)

"""A person's mistakes end a stage with status 2 and plain lines, and nothing that was there is harmed."""

import pytest

from pipeline.chain import manifest
from tests.conftest import SMALL, flags_of, without


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

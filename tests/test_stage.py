"""The life of a stage: what is current, what repeats, what is refused; a person's mistakes end with status 2."""

import json
import shutil

import pytest

from pipeline import ROOT
from pipeline.chain import manifest
from tests.conftest import SMALL, flags_of


def test_the_chain_hands_on_whole_models(chain):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("pretrain", "sft", "dpo"):
        record = manifest.read(chain / name)
        assert record["stage"] == name
        assert record["files"] == manifest.files(chain / name)
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
    monkeypatch.setattr("pipeline.config.library_class", lambda path: pytest.fail(f"imported {path}"))
    status, out, _ = run(name, *flags_of(name, copy, data))
    assert status == 0
    assert "up to date" in out
    assert manifest.read(copy / name) == before


def test_another_input_repeats_the_stage_and_keeps_the_old_one(run, copy, data):
    old = manifest.read(copy / "sft")
    status, out, _ = run("sft", *flags_of("sft", copy, data), "--lora_rank", "4")
    assert status == 0
    assert "what was there is kept in" in out
    assert manifest.read(copy / ".aside" / f"sft-{old['inputs'][:8]}") == old
    assert manifest.read(copy / "sft")["config"]["lora_rank"] == 4
    status, out, _ = run("dpo", *flags_of("dpo", copy, data))  # its parent is another model now
    assert status == 0
    assert "what was there is kept in" in out


def test_a_stage_made_on_your_own_data_is_kept_when_it_is_upstream(run, copy, data):
    """`make sft DATA=mine`, then `make dpo`: make checks sft without DATA, and it stays the one that was asked for."""
    flags = flags_of("sft", copy, data)
    at = flags.index("--data")
    bare = flags[:at] + flags[at + 2 : flags.index("--chat_template")]
    status, out, _ = run("sft", *bare, "--upstream", "yes")
    assert status == 0
    assert "up to date" in out


def test_editing_the_template_repeats_sft_and_not_pretraining(run, copy, data, tmp_path):
    template = tmp_path / "mine.jinja"
    text = (ROOT / "pipeline" / "templates" / "chatml.jinja").read_text()
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

    from pipeline.models import tokenizer

    made = tokenizer.train(["The cat saw the dog."], 300, 64)
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
    (tmp_path / "sft.yaml").write_text("lerning_rate: 1e-3\nlora_rank: many\nmax_steps: soon\nrecipe: world\n")
    status, _, err = run(
        "sft", "--config", tmp_path / "sft.yaml", "--parent", tmp_path / "none", "--output", tmp_path / "out", "stray"
    )
    lines = err.splitlines()
    assert status == 2
    assert "sft: command line: 'stray' belongs to no flag; write --key value" in lines
    assert f"sft: {tmp_path}/sft.yaml: lerning_rate: unknown key; did you mean learning_rate?" in lines
    assert f"sft: {tmp_path}/sft.yaml: lora_rank: expected int, found 'many'" in lines
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
        ("sft", ["--max_length", "null"], "max_length: SFT packs rows of a fixed length; give a number"),
        ("sft", ["--lora_rank", "0"], "lora_rank: expected at least 1, found 0"),
        ("sft", ["--seed", "2024-01-01"], "seed: expected int, found '2024-01-01'"),
        ("pretrain", ["--num_attention_heads", "3"], "transformers builds no causal model of it"),
        ("sft", ["--method", "lara"], "method: expected lora or full, found 'lara'"),
        ("sft", ["--init", "zero"], "init: expected parent or random, found 'zero'"),
    ],
)
def test_bad_input_is_one_plain_line(run, chain, data, tmp_path, name, change, complaint):
    flags = flags_of(name, chain, data, tmp_path / "out")
    if change[0] == "--recipe":
        at = flags.index("--data")
        del flags[at : at + 2]
    status, _, err = run(name, *flags, *change)
    assert status == 2, err
    assert complaint in err
    assert "Traceback" not in err


def test_data_of_the_wrong_shape_names_its_columns(run, chain, data, tmp_path):
    flags = flags_of("dpo", chain, data, tmp_path / "out")
    flags[flags.index("--data") + 1] = data / "chats.jsonl"
    status, _, err = run("dpo", *flags)
    assert status == 2
    assert "no layout for preference: found columns {messages}, expected {chosen, rejected}" in err


def test_a_folder_that_is_not_ours_is_left_alone(run, chain, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    status, _, err = run("sft", *flags_of("sft", chain, data, tmp_path))
    assert status == 2
    assert "not empty and not a stage directory" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_typo_that_only_the_library_notices_puts_the_finished_stage_back(run, copy, data):
    before = manifest.read(copy / "sft")
    status, out, _ = run("sft", *flags_of("sft", copy, data), "--lr_scheduler_type", "steep")
    assert status == 2
    assert "put back what was moved aside" in out
    assert manifest.read(copy / "sft") == before


def test_a_half_finished_stage_on_your_own_data_is_kept_when_it_is_upstream(run, copy, data):
    flags = flags_of("sft", copy, data)
    record = manifest.read(copy / "sft")
    (copy / "sft" / manifest.NAME).unlink()
    manifest.claim(copy / "sft", record | {"processes": 1})
    at = flags.index("--data")
    bare = flags[:at] + flags[at + 2 : flags.index("--chat_template")]
    status, out, _ = run("sft", *bare, "--upstream", "yes")
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
    assert "that stage is not finished" in err


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


def test_adoption_makes_a_stage_of_a_folder(run, chain, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(chain / "sft", bare)
    (bare / manifest.NAME).unlink()
    status, _, err = run("adopt", "--model", bare, "--output", tmp_path / "out")
    assert status == 0, err
    assert manifest.read(tmp_path / "out")["stage"] == "pretrain"
    status, _, err = run("adopt", "--output", tmp_path / "none")
    assert status == 2
    assert "give either model" in err


def test_evaluation_of_a_chain(run, chain, tmp_path):
    parents = [flag for name in ("pretrain", "sft", "dpo") for flag in ("--parent", chain / name)]
    flags = [*parents, "--output", tmp_path / "evaluate.json", "--samples", "2", "--max_new_tokens", "4", "--resamples", "50"]
    status, out, err = run("eval", *flags)
    assert status == 0, err
    found = json.loads((tmp_path / "evaluate.json").read_text())
    assert set(found["stages"]) == {"pretrain", "unigram", "sft", "dpo"}
    for metrics in found["stages"].values():
        for figure in metrics.values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] > 0
    assert "bits_per_byte" in out
    assert len(found["samples"]) == 2
    assert "up to date" in run("eval", *flags)[1]
    status, _, err = run("eval", *flags, "--sample", "2", "--parent", tmp_path / "none")
    assert status == 2
    assert "sample: unknown key; did you mean samples?" in err
    assert "none: no finished stage" in err
    status, _, err = run("eval", *flags, "--parent", chain / "sft")
    assert status == 2
    assert "there is a sft already" in err


def test_a_mixture_is_not_evaluated(run, copy, data, tmp_path):
    assert run("pretrain", *flags_of("pretrain", copy, data), "--seed", "7")[0] == 0
    status, _, err = run("eval", "--parent", copy / "pretrain", "--parent", copy / "sft", "--output", tmp_path / "e.json")
    assert status == 2
    assert "was made from another pretrain" in err

"""The life of a stage: what it hands on and records, when it is up to date, when it is made again."""

import json
import shutil

import pytest

from pipeline.chain import manifest
from pipeline.models.tokenization import template_path
from pipeline.system import hashes
from tests.conftest import SMALL, flags_of, without


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


def test_without_a_length_rows_are_as_long_as_the_parent_has_positions(run, chain, data, tmp_path):
    status, out, err = run("sft", *without("--max_length", flags_of("sft", chain, data, tmp_path / "sft")))
    assert status == 0, err
    assert "max_length 64, since the parent has 64 positions" in out
    assert manifest.read(tmp_path / "sft")["outputs"] == manifest.read(chain / "sft")["outputs"]

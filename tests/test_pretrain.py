"""The stage with every objective: what resumes, what accumulates, what loads, what is refused."""

import json
import shutil

import pytest
import torch

from pipeline import objectives
from pipeline.chain import manifest, resume
from pipeline.data import token_tables
from pipeline.objectives import rtd
from pipeline.training import outcome
from tests.conftest import SMALL, Fails, mostly_slow
from tests.objectives import NAMES, ROWS, WORDS, corpus, flags, text_of, write_rows


def bits(folder):
    return manifest.read(folder)["outputs"]


@pytest.mark.parametrize("name", mostly_slow(NAMES, "causal", "mlm", "rtd", "contrastive"))
def test_it_resumes_to_the_same_bytes_and_loads(run, tmp_path, monkeypatch, name):
    """Killed in its second epoch; masks and pairs there are other ones than in the first."""
    import transformers

    from pipeline.training.trainer import Traced

    given = flags(name, tmp_path, "--max_steps", "34", "--save_steps", "5")
    status, _, err = run("pretrain", *given)
    assert status == 0, err
    expected, log = bits(tmp_path / "out"), (tmp_path / "out" / "log.jsonl").read_text()
    record = manifest.read(tmp_path / "out")
    assert record["family"] == objectives.load(name).family
    (tmp_path / "out").rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Traced, "__call__", Fails(Traced.__call__, 28))
        patch.setattr(outcome, "losses", lambda trainer: [])  # whose batches are none of training's
        assert run("pretrain", *given)[0] == 1
    assert resume.latest(tmp_path / "out").name == "checkpoint-25"
    assert run("pretrain", *given)[0] == 0
    assert bits(tmp_path / "out") == expected
    losses = [
        [json.loads(line)["loss"] for line in text.splitlines()] for text in (log, (tmp_path / "out" / "log.jsonl").read_text())
    ]
    assert losses[0] == losses[1]
    kind = {
        "causal": "ForCausalLM",
        "masked": "ForMaskedLM",
        "discriminator": "ForPreTraining",
        "seq2seq": "ForSeq2SeqLM",
        "embedder": "",
    }
    if record["family"] in kind:
        _model, told = getattr(transformers, f"AutoModel{kind[record['family']]}").from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        assert not told["missing_keys"]
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id is not None
    else:
        lines = (tmp_path / "out" / "vectors.txt").read_text().splitlines()
        count, width = map(int, lines[0].split())
        assert len(lines) == count + 1
        assert all(len(line.split(" ")) == width + 1 for line in lines[1:])


@pytest.mark.parametrize("name", mostly_slow([name for name in NAMES if objectives.load(name).accepts], "causal", "mlm", "rtd"))
def test_it_goes_on_from_its_own_kind(run, tmp_path, name):
    assert run("pretrain", *flags(name, tmp_path, "--max_steps", "2"))[0] == 0
    (tmp_path / "out").rename(tmp_path / "parent")
    status, out, err = run("pretrain", *flags(name, tmp_path, "--max_steps", "2", "--parent", tmp_path / "parent"))
    assert status == 0, err
    assert "tokenizer and sizes from" in out
    shutil.rmtree(tmp_path / "out")
    bare = tmp_path / "bare"
    shutil.copytree(tmp_path / "parent", bare)
    (bare / manifest.NAME).unlink()  # a folder from elsewhere is known by its config.json
    assert run("pretrain", *flags(name, tmp_path, "--max_steps", "2", "--parent", bare))[0] == 0


def test_rtd_of_modernbert_resumes_and_goes_on(run, tmp_path, monkeypatch):
    """Its halves share a table, and its head is another class than ELECTRA's."""
    from transformers import AutoModelForTokenClassification

    given = flags("rtd", tmp_path, "--architecture", "modernbert", "--max_steps", "6", "--save_steps", "3")
    status, _, err = run("pretrain", *given)
    assert status == 0, err
    expected = bits(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "parent")
    with monkeypatch.context() as patch:
        patch.setattr(rtd.ReplacedTokenDetection, "losses", Fails(rtd.ReplacedTokenDetection.losses, at=5))
        patch.setattr(outcome, "losses", lambda trainer: [])
        assert run("pretrain", *given)[0] == 1
    status, said, err = run("pretrain", *given)
    assert status == 0, err
    assert "goes on from checkpoint-3" in said
    assert bits(tmp_path / "out") == expected
    model, told = AutoModelForTokenClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    pair = objectives.load("rtd").load_model(str(tmp_path / "out"))
    assert torch.equal(pair.generator.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert pair.generator.get_output_embeddings().weight is pair.discriminator.get_input_embeddings().weight
    assert pair.generator.config.num_hidden_layers < pair.discriminator.config.num_hidden_layers
    shutil.rmtree(tmp_path / "out")
    assert run("pretrain", *flags("rtd", tmp_path, "--max_steps", "2", "--parent", tmp_path / "parent"))[0] == 0


@pytest.mark.parametrize("name", [name for name in NAMES if objectives.load(name).accumulates])
def test_accumulation_is_exact(tokenizers, tmp_path, monkeypatch, one_step, name):
    """The gradient's norm of 4 batches of 2 over that of 1 batch of 8, each part by its own items."""
    from transformers import set_seed

    from pipeline.training.trainer import ObjectiveTrainer

    objective = objectives.load(name)
    tokenizer = tokenizers[objective.tokenizer_type]
    text = text_of(tokenizer, rows=ROWS[:24], max_length=48)
    dataset = token_tables.numbered(write_rows(list(objective.examples(text)), tmp_path / "rows.arrow"))
    if name == "rtd":  # the samples of one batch of 8 are not those of four of 2
        monkeypatch.setattr(torch.distributions.Categorical, "sample", lambda self: self.probs.argmax(-1))
    norms = []
    for size, parts in ((8, 1), (2, 4)):
        set_seed(1)
        model = objective.build_model(
            tokenizer,
            objective.architectures[0],
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
        if name in ("skipgram", "cbow"):
            torch.nn.init.normal_(model.others.weight)
        collator = objective.collator(tokenizer, dataset, 1)
        norms.append(one_step(ObjectiveTrainer, objective, model, collator, dataset, tokenizer, size, parts))
    assert norms[1] / norms[0] == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_a_parent_without_dropout_gets_views(run, tmp_path, architecture):
    assert run("pretrain", *flags("mlm", tmp_path, "--max_steps", "1", "--architecture", architecture))[0] == 0
    (tmp_path / "out").rename(tmp_path / "parent")
    status, _, err = run("pretrain", *flags("contrastive", tmp_path, "--max_steps", "2", "--parent", tmp_path / "parent"))
    assert status == 0, err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert 0.1 in (config.get("hidden_dropout_prob"), config.get("mlp_dropout"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--objective", "mlm", "--architecture", "llama"], "architecture: llama: no model of it can be built for this objective"),
        (["--objective", "rtd", "--architecture", "bert"], "architecture: bert"),
        (["--objective", "span_corruption", "--architecture", "bert"], "architecture: bert"),
        (["--objective", "guess"], "objective: guess: no such objective; known are causal, cbow, clip, contrastive"),
        (["--objective", "mlm", "--objective_options", "{mask_shard: 0.2}"], "mask_shard: unknown key; did you mean mask_share?"),
        (["--objective", "mlm", "--objective_options", "{mask_share: 2.0}"], "mask_share: expected at most 0.9, found 2"),
        (["--objective", "mlm", "--vocab_size", "20"], "vocab_size: 20 does not even hold the"),
        (["--objective", "mlm", "--objective_options", "{mask_share: most}"], "mask_share: expected float, found 'most'"),
        (["--objective", "contrastive", "--gradient_accumulation_steps", "2"], "would cut the batch, which holds the negatives"),
        (["--objective", "contrastive", "--per_device_train_batch_size", "1"], "leaves no negative in the batch"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_plain_line(run, tmp_path, more, said):
    status, _, err = run("pretrain", *flags("causal", tmp_path), *more)
    assert status == 2
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["mlm_nsp", "mlm_sop"])
def test_pairs_need_documents(run, tmp_path, name):
    given = flags(name, tmp_path)
    corpus(tmp_path, [{"text": "One. Two. Three."}, *({"text": f"only {word}"} for word in WORDS)])
    status, _, err = run("pretrain", *given)
    assert status == 2
    assert "pairs need two documents of two sentences or more, found 1; each row is one document" in err


def test_a_parent_of_another_family_is_refused(run, chain, data, tmp_path):
    for name, family in (
        ("mlm", "masked or embedder"),
        ("span_corruption", "seq2seq"),
        ("skipgram", "no parent here; abstain and calibrate and distill and dpo and finetune and "),
    ):
        status, _, err = run("pretrain", *flags(name, tmp_path, "--parent", chain / "pretrain"))
        assert status == 2
        assert f"pretrain made a model of family causal, but pretrain takes {family}" in err
    assert run("pretrain", *flags("mlm", tmp_path, "--max_steps", "1"))[0] == 0
    given = [*SMALL["sft"], "--parent", tmp_path / "out", "--data", data / "chats.jsonl", "--output", tmp_path / "sft"]
    status, _, err = run("sft", *given)
    assert status == 2
    assert "out made a model of family masked, but sft takes causal as its parent; finetune and pretrain" in err

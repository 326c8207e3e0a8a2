"""What is pushed arrives whole and is the node; what should not be pushed is refused with every reason."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard

from pipeline import ROOT
from pipeline.chain import finished, manifest
from pipeline.hub import gate
from pipeline.models.families import auto_class
from tests.objectives import flags


def push(run, ready, *flags):
    return run("push", "--hub", "me/small", "--runs", ready, *flags)


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def head(hub, name, kind="model"):
    repo = hub.repos[kind, name]
    return repo.commits[repo.head]


def test_the_chain_becomes_three_repositories(run, ready, hub):
    status, out, err = push(run, ready)
    assert status == 0, err
    assert set(hub.repos) == {("model", "me/small-pretrain"), ("model", "me/small-sft"), ("model", "me/small")}
    for name, stage in (("me/small-pretrain", "pretrain"), ("me/small-sft", "sft"), ("me/small", "dpo")):
        repo, outputs = hub.repos["model", name], manifest.read(ready / stage)["outputs"]
        assert repo.private
        assert len(repo.commits) == 2, "what the hub makes itself, and one commit"
        assert repo.tags == {f"tristage-{outputs[:12]}": repo.head}
        assert f"pushed: {name} at tristage-{outputs[:12]}, private" in out
        sent = json.loads(head(hub, name)["manifest.json"].data)["pushed"]
        assert {path: file.sha256 for path, file in head(hub, name).items() if path in sent} == sent
        assert "model.safetensors" in sent
        assert "loss.svg" in sent
    assert out.count("logits and greedy answers of 3 prompts by AutoModelForCausalLM") == 3


def test_only_listed_files_leave(run, ready, hub):
    for name in ("training_args.bin", "optimizer.pt", "notes.txt", ".env"):
        (ready / "sft" / name).write_text("private")
    edit(ready / "sft" / "manifest.json", lambda record: record["files"])
    status, _, err = push(run, ready, "--node", "sft")
    assert status == 2  # training_args.bin is a file that a library would load
    assert "training_args.bin was added" in err
    status, _, err = push(run, ready, "--node", "sft", "--force", "yes")
    assert status == 0, err
    assert set(head(hub, "me/small-sft")) == {
        ".gitattributes", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "loss.svg", "manifest.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.slow
def test_a_push_of_what_is_there_makes_no_commit(run, ready, hub):
    assert push(run, ready)[0] == 0
    before = {name: list(repo.commits) for name, repo in hub.repos.items()}
    status, out, err = push(run, ready)
    assert status == 0, err
    assert out.count("nothing changed, no commit") == 3
    assert out.count("read back and equal") == 3
    assert {name: list(repo.commits) for name, repo in hub.repos.items()} == before


def test_a_new_card_leaves_the_tag_where_the_weights_came(run, ready, hub):
    assert push(run, ready, "--node", "sft")[0] == 0
    repo = hub.repos["model", "me/small-sft"]
    tags = dict(repo.tags)
    status, out, _ = push(run, ready, "--node", "sft", "--license", "mit")
    assert status == 0
    assert "the tag stays at" in out
    assert repo.tags == tags
    assert len(repo.commits) == 3
    assert ModelCard(head(hub, "me/small-sft")["README.md"].data.decode()).data.license == "mit"


def test_a_tag_that_names_other_weights_is_refused(run, ready, hub):
    assert push(run, ready, "--node", "sft")[0] == 0
    repo = hub.repos["model", "me/small-sft"]
    first = next(iter(repo.commits))
    repo.tags = dict.fromkeys(repo.tags, first)
    status, out, err = push(run, ready, "--node", "sft")
    assert status == 2
    assert "names another" in err
    assert "pushed:" not in out


@pytest.mark.slow
def test_a_file_that_is_no_longer_part_goes_with_the_same_commit(run, ready, hub):
    assert push(run, ready, "--adapter", "yes")[0] == 0
    assert "adapter/adapter_model.safetensors" in head(hub, "me/small")
    assert push(run, ready)[0] == 0
    assert "adapter/adapter_model.safetensors" not in head(hub, "me/small")
    assert len(hub.repos["model", "me/small"].commits) == 3


def test_public_only_when_asked_and_only_after_reading_back(run, ready, hub):
    status, _, err = push(run, ready, "--node", "sft", "--public", "yes")
    assert status == 0, err
    assert not hub.repos["model", "me/small-sft"].private
    order = [line for line in hub.log if "/settings" in line or "model.safetensors" in line]
    assert order[-1] == "PUT /api/models/me/small-sft/settings"
    status, _, err = push(run, ready, "--node", "sft")
    assert status == 2
    assert "me/small-sft: is public; PUBLIC=1 says that this is wanted" in err


def test_a_repository_of_something_else_is_not_covered(run, ready, hub):
    api = HfApi(endpoint=hub.url)
    api.create_repo("me/small-sft", private=True)
    api.upload_file(path_or_fileobj=b"weights", path_in_repo="pytorch_model.bin", repo_id="me/small-sft")
    status, _, err = push(run, ready, "--node", "sft")
    assert status == 2
    assert "holds what tristage did not push (pytorch_model.bin)" in err
    assert set(head(hub, "me/small-sft")) == {".gitattributes", "pytorch_model.bin"}


def test_the_adapter_names_the_pushed_base_and_loads_on_it(run, ready, hub, tmp_path):
    from peft import PeftConfig

    status, out, err = push(run, ready, "--adapter", "yes")
    assert status == 0, err
    assert out.count("the adapter on its base") == 2
    where = HfApi(endpoint=hub.url).snapshot_download("me/small", cache_dir=tmp_path / "cache")
    config = PeftConfig.from_pretrained(f"{where}/adapter")
    assert config.base_model_name_or_path == "me/small-sft"
    assert config.revision == next(iter(hub.repos["model", "me/small-sft"].tags))


def test_an_adapter_without_its_base_on_the_hub_is_refused(run, ready, hub):
    status, _, err = push(run, ready, "--node", "dpo", "--adapter", "yes")
    assert status == 2
    assert "its parent is not on the hub" in err
    assert not hub.repos


def test_an_adapter_that_brought_tokens_is_refused(run, ready, hub):
    edit(ready / "pretrain" / "config.json", lambda config: config.update(vocab_size=config["vocab_size"] - 2))
    status, _, err = push(run, ready, "--adapter", "yes", "--force", "yes")
    assert status == 2
    assert "sft: added tokens to its base, so its adapter fits no pushed model" in err
    assert not hub.repos


@pytest.mark.slow
def test_names_can_be_set(run, ready, hub):
    assert push(run, ready, "--names", "{pretrain: ground, dpo: me/roof}")[0] == 0
    assert {name for _, name in hub.repos} == {"me/ground", "me/small-sft", "me/roof"}
    assert ModelCard(head(hub, "me/small-sft")["README.md"].data.decode()).data.base_model == "me/ground"


def test_what_was_read_back_must_be_what_was_pushed(run, ready, hub, monkeypatch):
    """A hub that keeps other weights than it was given: all is there, and nothing says `pushed`."""
    from tests.hub import Handler

    ranged = Handler.ranged

    def other(self, data, headers):
        if "model.safetensors" in self.path and self.command == "GET":
            data = data[:-1] + bytes([data[-1] ^ 1])
        return ranged(self, data, headers)

    monkeypatch.setattr(Handler, "ranged", other)
    status, out, err = push(run, ready, "--node", "sft", "--public", "yes")
    assert status == 1
    assert "what was read back is not what was pushed: model.safetensors is another file" in err
    assert "pushed:" not in out
    assert hub.repos["model", "me/small-sft"].private


def test_a_file_that_changes_while_it_is_pushed_is_no_success(run, ready, hub, monkeypatch):
    from pipeline.hub import upload

    commit = upload.Hub.commit

    def changing(self, delivery):
        path = ready / "sft" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        return commit(self, delivery)

    monkeypatch.setattr(upload.Hub, "commit", changing)
    status, out, err = push(run, ready, "--node", "sft")
    assert status == 1
    assert "model.safetensors is another file" in err
    assert "pushed:" not in out


@pytest.mark.parametrize("harm", ["logits", "answers", "tokens"])
def test_the_comparison_sees_another_model(ready, harm):
    """The digests aside: other weights, other generation settings, another template."""
    import torch
    from safetensors.torch import load_file, save_file

    from pipeline.hub import readback

    other = shutil.copytree(ready / "sft", ready / "other")
    if harm == "logits":
        weights = load_file(other / "model.safetensors")
        save_file({name: value + 1e-3 * torch.ones_like(value) for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})  # fmt: skip
    elif harm == "answers":
        edit(other / "generation_config.json", lambda value: value.update(eos_token_id=list(range(380))))
    else:
        (other / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert readback._behaves(ready / "sft", ready / "sft", "AutoModelForCausalLM") == []
    words = {"logits": "other logits", "answers": "another greedy answer", "tokens": "other tokens"}[harm]
    assert any(words in fault for fault in readback._behaves(other, ready / "sft", "AutoModelForCausalLM"))


# What the gate refuses, and what it says then.
def unfinished(ready):
    (ready / "evaluate.json").unlink()
    return "sft: not evaluated"


def another(ready):
    edit(ready / "evaluate.json", lambda summary: summary["measured"].update(sft="0" * 64))
    return "evaluate.json measured another sft; make evaluate"


def worse(ready):
    def change(summary):
        block = summary["nodes"]["sft"]
        block["primary"] = {
            "metric": "loss", "against": "pretrain", "role": "parent", "value": 0.2, "low": 0.1, "high": 0.3, "n": 4, "better": False
        }  # fmt: skip

    edit(ready / "evaluate.json", change)
    return "sft: worse than pretrain by loss: +0.200 nats [0.100, 0.300], no verdict on fewer than 30"


def unmeasured(ready):
    edit(ready / "evaluate.json", lambda summary: summary["nodes"]["sft"].update(primary=None))
    return "has no figure that holds it against its parent or a baseline"


def dirty(ready):
    edit(ready / "pretrain" / "manifest.json", lambda record: record["code"].update(dirty=True))
    return "pretrain: made from a tree with changes that no commit holds"


def altered(ready):
    (ready / "sft" / "config.json").write_text((ready / "sft" / "config.json").read_text() + "\n")
    return "config.json is not the file that was made"


def swapped(ready):
    edit(ready / "sft" / "manifest.json", lambda record: record["parents"][0].update(outputs="0" * 64))
    return "was made from another pretrain"


@pytest.mark.parametrize("harm", [unfinished, another, worse, unmeasured, dirty, altered, swapped])
def test_what_the_gate_refuses_needs_force_and_the_card_says_so(run, ready, hub, harm):
    said = harm(ready)
    status, _, err = push(run, ready, "--node", "sft")
    assert status == 2
    assert said in err
    assert not hub.log, "nothing was asked of the hub"
    status, _, err = push(run, ready, "--node", "sft", "--force", "yes")
    assert status == 0, err
    card = head(hub, "me/small-sft")["README.md"].data.decode()
    assert "Pushed with FORCE=1" in card
    assert said.rpartition("/")[2] in card
    assert str(ready) not in card


def test_every_reason_is_told_at_once(run, ready, hub):
    said = [dirty(ready), altered(ready), worse(ready)]
    err = push(run, ready, "--node", "sft")[2]
    assert all(text in err for text in said)


def test_a_model_that_did_not_learn_is_refused(run, evaluated, tmp_path, hub):
    """Measured, not made up: six steps of pretraining are worse than counting words."""
    status, _, err = push(run, shutil.copytree(evaluated, tmp_path / "runs"))
    assert status == 2
    assert re.search(r"pretrain: worse than 5-gram by loss: \S+ nats .*; unigram by loss: ", err)


@pytest.mark.parametrize(("low", "high", "refused"), [(-0.3, -0.1, True), (-0.1, 0.1, False), (0.1, 0.3, False)])
def test_any_metric_of_any_node_is_held_against_its_rival(low, high, refused):
    """Here a share that a stage of a kind that nobody knows was measured by, against even chances."""
    record = {"node": "round-2", "control_of": "", "outputs": "x", "steps": 4}
    compared = {
        "metric": "wins",
        "against": "even chances",
        "role": "baseline",
        "value": (low + high) / 2,
        "low": low,
        "high": high,
    }
    compared["better"] = low > 0
    block = {
        "primary": compared,
        "comparisons": [compared],
        "metrics": {"wins": {"meaning": "", "unit": "share", "better": "more"}},
    }
    summary = {"measured": {"round-2": "x"}, "nodes": {"round-2": block}}
    node = finished.Finished(Path("runs", record["node"]), record)
    said = gate._worth(node, summary, "evaluate.json")
    assert said == ["round-2: worse than even chances by wins: -20.0 points [-30.0, -10.0], worse, clear of zero"] * refused
    easier = compared | {"against": "a constant", "value": 0.2, "low": 0.1, "high": 0.3, "better": True}
    block["comparisons"].append(easier)
    assert gate._worth(node, summary, "evaluate.json") == [], "worse than counting, but better than the easiest baseline"


def test_a_control_is_no_product():
    record = {"node": "sft-control", "control_of": "sft", "outputs": "x", "steps": 4}
    said = gate._worth(finished.Finished(Path("runs", record["node"]), record), None, "evaluate.json")
    assert said == ["sft-control: a control of sft, made to be compared with and not to be used"]


@pytest.mark.parametrize(
    ("family", "architecture", "wanted"),
    [("causal", "LlamaForCausalLM", "AutoModelForCausalLM"), ("causal", "GPT2LMHeadModel", "AutoModelForCausalLM"),
     ("masked", "BertForPreTraining", "AutoModelForPreTraining"), ("masked", "RobertaForMaskedLM", "AutoModelForMaskedLM"),
     ("discriminator", "ElectraForPreTraining", "AutoModelForPreTraining"), ("seq2seq", "T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
     ("classifier", "BertForTokenClassification", "AutoModelForTokenClassification"), ("embedder", "BertModel", "AutoModel"),
     ("classifier", "BertForQuestionAnswering", "AutoModelForQuestionAnswering"), ("vectors", "Table", ""), ("reward", "", "AutoModelForSequenceClassification"),
     ("", "", "AutoModel")],
)  # fmt: skip
def test_the_class_that_loads_a_model(family, architecture, wanted):
    assert auto_class(family, {"architectures": [architecture]}) == wanted


def test_what_is_wrong_with_the_command_is_told_at_once(run, ready):
    status, _, err = run(
        "push", "--hub", "me", "--runs", ready, "--licence", "mit", "--public", "maybe", "--token", "hf_secret"
    )
    assert status == 2
    assert "HUB: expected namespace/name, as in HUB=me/tiny, found 'me'" in err
    assert "--licence" in err or "licence: unknown key; did you mean license?" in err
    assert "public: expected bool, found 'maybe'" in err
    assert "token: can't be set here; the token comes from the environment or the hub login" in err
    assert "hf_secret" not in err
    status, _, err = run("push", "--hub", "me/x", "--runs", ready / "nowhere")
    assert status == 2
    assert "no finished node; run make first" in err


@pytest.mark.parametrize(
    ("name", "loader"),
    [("mlm_nsp", "AutoModelForPreTraining"), ("mlm", "AutoModelForMaskedLM"), ("rtd", "AutoModelForPreTraining"),
     ("denoising", "AutoModelForSeq2SeqLM"), ("contrastive", "AutoModel"), ("cbow", "")],
)  # fmt: skip
def test_models_of_every_family_are_pushed_and_the_code_on_their_card_runs(run, hub, tmp_path, name, loader):
    assert run("pretrain", *flags(name, tmp_path, "--max_steps", "1"))[0] == 0
    (tmp_path / "out").rename(tmp_path / "pretrain")
    status, out, err = run("push", "--hub", "me/any", "--runs", tmp_path, "--force", "yes")
    assert status == 0, err
    assert f"of 3 prompts by {loader}" in out if loader else "files by digest" in out
    files = head(hub, "me/any")
    assert ("vectors.txt" in files) is (name == "cbow")
    assert ("generator/model.safetensors" in files) is (name == "rtd")
    assert ("modules.json" in files) is (name == "contrastive")
    block = re.search(r"```python\n(.*?)```", files["README.md"].data.decode(), flags=re.DOTALL)[1]
    if loader:
        where = HfApi(endpoint=hub.url).snapshot_download("me/any", cache_dir=tmp_path / "cache")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(block.replace('"me/any"', repr(where)), {})
        assert said.getvalue()
    else:
        compile(block, "card", "exec")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [([], []), (["PUBLIC=1"], ["--public=yes"]), (["PUBLIC=0", "FORCE=no"], []),
     (["FORCE=1", "ADAPTER=1"], ["--force=yes", "--adapter=yes"]), (["STAGE=sft"], ["--node=sft"]),
     (["ARGS=--license mit"], ["--license", "mit"]), (["HUB=me/a b'c"], ["--hub=me/a b'c"])],
)  # fmt: skip
def test_make_publishes_only_what_its_command_line_says(given, wanted, tmp_path):
    """A PUBLIC or FORCE that happens to be in the environment publishes and forces nothing."""
    for name in (".ready", "bin/python"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(
            f'#!{sys.executable}\nimport json, sys; from pipeline.commands import __main__ as m, push\nprint(json.dumps(m.flags("push", push)))\n'
        )
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PUBLIC": "1", "FORCE": "1", "ADAPTER": "1", "PYTHONPATH": str(ROOT)}
    command = ["make", "--no-print-directory", f"VENV={tmp_path}", "push", "HUB=me/tiny", *given]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    hub = [flag for flag in wanted if flag.startswith("--hub")] or ["--hub=me/tiny"]
    assert sorted(json.loads(said)) == sorted([*hub, "--runs=runs/tiny", *(flag for flag in wanted if flag not in hub)])


def test_controls_rows_and_adopted_models_stay(run, ready, hub, tmp_path):
    """Without a name the released node and the trained models that it descends from leave, and nothing else."""
    shutil.copytree(ready / "sft", ready / "sft-control")
    edit(
        ready / "sft-control" / "manifest.json",
        lambda record: record.update(node="sft-control", control_of="sft", starts_from="random"),
    )
    edit(ready / "pretrain" / "manifest.json", lambda record: record.pop("steps"))
    status, out, err = push(run, ready)
    assert status == 0, err
    assert {name for _, name in hub.repos} == {"me/small-sft", "me/small"}
    assert "me/small-sft: its parent is not on the hub; the card links to none" in out
    status, _, err = push(run, ready, "--node", "sft-control", "--force", "yes")
    assert status == 0, err
    card = ModelCard(head(hub, "me/small-sft-control")["README.md"].data.decode())
    assert card.data.get("base_model") is None, "a model that began at random took no weights of its parent"
    assert "A control of `sft`" in card.text
    edit(ready / "sft" / "manifest.json", lambda record: record.update(family="rows"))
    status, _, err = push(run, ready, "--node", "sft")
    assert status == 2
    assert "hands on rows and no model; make push-data STAGE=sft pushes rows" in err


def test_a_fine_tuned_node_is_judged_by_its_own_figures(run, tmp_path, hub, monkeypatch):
    from tests.test_finetune import flags
    from tests.test_tasks import parent

    monkeypatch.setattr(manifest, "commit", lambda: {"commit": "0" * 40, "dirty": False})
    source = parent(tmp_path / "parent", "mlm")
    folder = tmp_path / "runs" / "finetune-moods"
    given = [*flags("classification", {"mlm": source}, tmp_path, "--output", folder)]
    assert run("finetune", *given)[0] == 0

    def differs(low, high):
        change = {"value": (low + high) / 2, "low": low, "high": high, "better": low > 0}

        def changed(record):
            for one in [record["evaluation"]["primary"], *record["evaluation"]["comparisons"]]:  # of every rival
                one.update(change)

        edit(folder / "manifest.json", changed)

    differs(-0.3, -0.1)
    status, _, err = push(run, tmp_path / "runs")
    assert status == 2
    assert re.search(r"finetune-moods: worse than .* by macro_f1: -20\.0 points", err)
    differs(0.1, 0.3)
    status, out, err = push(run, tmp_path / "runs")
    assert status == 0, err
    assert "AutoModelForSequenceClassification" in out
    card = head(hub, "me/small")["README.md"].data.decode()
    assert "macro_f1" in card
    assert "text-classification" in card
    assert not {"predictions.jsonl", "confusion.csv"} & set(head(hub, "me/small"))


@pytest.mark.slow
def test_an_adapter_that_comes_later_is_in_the_tag_that_is_printed(run, ready, hub):
    assert push(run, ready)[0] == 0
    status, out, err = push(run, ready, "--adapter", "yes")
    assert status == 0, err
    for name in ("me/small-sft", "me/small"):
        repo = hub.repos["model", name]
        (tag,) = (line.split(" at ")[1].split(",")[0] for line in out.splitlines() if f"pushed: {name} at" in line)
        assert tag.endswith("-adapter")
        assert "adapter/adapter_model.safetensors" in repo.commits[repo.tags[tag]]
        assert "adapter/adapter_model.safetensors" not in repo.commits[repo.tags[tag.removesuffix("-adapter")]]
    status, out, err = push(run, ready, "--adapter", "yes")
    assert status == 0, err
    assert out.count("-adapter, private") == 2
    assert out.count("nothing changed, no commit") == 3


def test_a_card_links_to_code_and_to_the_rows_that_were_pushed(run, ready, hub):
    api = HfApi(endpoint=hub.url)
    status, _, err = push(run, ready, "--code", "https://example.com/tristage")
    assert status == 0, err
    card = head(hub, "me/small")["README.md"].data.decode()
    assert f"[`{'c' * 40}`](https://example.com/tristage/tree/{'c' * 40})" in card
    assert 'revision="tristage-' in card.partition("```python")[2].partition("```")[0]
    edit(ready / "sft" / "manifest.json", lambda record: record["recipe"].update(name="world", data=None))
    edit(ready / "evaluate.json", lambda summary: summary["nodes"])
    api.create_repo("me/world", repo_type="dataset", private=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="manifest.json", repo_id="me/world", repo_type="dataset")
    status, _, err = push(run, ready, "--force", "yes")
    assert status == 0, err
    card = ModelCard(head(hub, "me/small")["README.md"].data.decode())
    assert card.data.datasets == ["me/world"]
    assert "| sft | [world](/datasets/me/world) |" in card.text

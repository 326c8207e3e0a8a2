"""Nothing leaks: what may leave, what the pushed record says, and every kind of secret stops the push."""

import getpass
import json
import socket
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.chain import manifest
from pipeline.hub import leaks
from pipeline.system import hashes
from tests.test_push import edit, head, push

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "a hub token": "hf_" + "aB3" * 11,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "an AWS access key": "AKIA" + "ABCDEFGH12345678",
    "a GitHub token": "ghp_" + "a1" * 18,
    "an API key (sk-…)": "sk-proj-" + "a1B2" * 8,
    "a Google API key": "AIza" + "a" * 35,
    "a Slack token": "xoxb-" + "1234567890-abc",
    "a GitLab token": "glpat-" + "a" * 20,
    "a Weights & Biases key": "WANDB_API_KEY=" + "0a" * 20,
    "a JSON web token": "eyJhbGciOiJIUzI1." + "eyJzdWIiOiIxMjM0." + "SflKxwRJSMeK",
    "a password in an address": "postgres://me:" + "hunter22@db.example/x",
    "a secret that is assigned": 'api_key = "' + "q" * 16 + '"',
}


@pytest.mark.parametrize("kind", SECRETS)
def test_every_kind_of_secret_is_found_and_never_shown(kind):
    files = {"a.json": json.dumps({"text": f"see {SECRETS[kind]} there"}).encode()}
    with pytest.raises(leaks.UserError) as caught:
        leaks.stop("runs/sft", files)
    assert f"runs/sft: a.json holds {kind}; nothing was pushed" in caught.value.faults
    assert SECRETS[kind] not in str(caught.value)


def test_every_pattern_is_tested():
    assert set(SECRETS) == set(leaks._SECRETS)


@pytest.mark.parametrize(
    "text",
    [
        "task-based-learning-of-small-models",
        "the password is in the safe",
        "sha256: " + "0a" * 32,
        "hf_hub",
        "The key: 'value'",
    ],
)
def test_plain_text_is_no_secret(text):
    assert leaks.secrets(text) == []


def test_the_token_in_use_is_found_whatever_it_looks_like():
    assert leaks.secrets("my t0ken-of-a-mirror here", "t0ken-of-a-mirror") == ["the hub token in use"]


def test_an_escaped_secret_is_found():
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in SECRETS["a hub token"])
    with pytest.raises(leaks.UserError):
        leaks.stop("x", {"config.json": ('{"a": "' + escaped + '"}').encode()})


def test_the_metadata_of_safetensors_is_read(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt", "note": SECRETS["a hub token"]})
    with pytest.raises(leaks.UserError, match=r"model\.safetensors holds a hub token"):
        leaks.stop("x", {"model.safetensors": tmp_path / "model.safetensors"})


@pytest.mark.parametrize("path", ["/home/alice/data", "/Users/Alice/x", "C:\\Users\\alice", str(ROOT / "runs")])
def test_a_path_of_somebody_stops_the_push(path):
    with pytest.raises(leaks.UserError, match="a path of this machine"):
        leaks.stop("x", {"tokenizer_config.json": json.dumps({"name_or_path": path}).encode()})


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "log.jsonl", "notes.txt", ".env", "sub/config.json", "model.py",
                                  "checkpoint-4/model.safetensors", "adapter/adapter_model.bin", "../model.safetensors", "claim.json"])  # fmt: skip
def test_what_is_not_listed_is_withheld(name):
    assert not leaks.may_leave(name, adapter=True)


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json",
                                  "tokenizer.json", "vocab.txt", "chat_template.jinja", "generation_config.json", "1_Pooling/config.json"])  # fmt: skip
def test_what_is_listed_leaves(name):
    assert leaks.may_leave(name)


def test_an_adapter_leaves_only_where_asked():
    assert leaks.may_leave("adapter/adapter_model.safetensors", adapter=True)
    assert not leaks.may_leave("adapter/adapter_model.safetensors")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("/home/alice/my data/x.jsonl", "x.jsonl"), ("~/x/y.json", "y.json"), ("../secret/x.jsonl", "x.jsonl"), ("C:\\data\\x.json", "x.json"),
     ("file:///srv/x.json", "x.json"), ("/", "a folder"), ("me/data", "me/data"), ("runs/tiny/sft", "runs/tiny/sft"), (3, 3), (None, None),
     ("two: /srv/a/b.txt, /srv/c/", "two: b.txt, c"), ("https://example.org/a/b", "https://example.org/a/b"), (["/a/b/c"], ["c"]), ({"a": "/a/b"}, {"a": "b"})],
)  # fmt: skip
def test_paths_are_cut_to_their_last_name(value, wanted):
    assert leaks.without_paths(value) == wanted


def test_host_and_user_are_not_named(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "bluebox.lan")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    assert leaks.without_paths("alice@bluebox.lan, Alice, bluebox, aliceblue") == "…@…, …, …, aliceblue"


def test_the_pushed_record_knows_nothing_of_this_machine(run, ready, hub, monkeypatch):
    """The nodes of the fixture were made from files with absolute paths, in absolute folders."""
    monkeypatch.setattr(socket, "gethostname", lambda: "bluebox.lan")
    assert str(ready.parent.parent)[:5] in (ready / "sft" / "manifest.json").read_text()
    edit(
        ready / "sft" / "manifest.json",
        lambda record: record["config"].update(deepspeed="/home/alice/ds.json", run_name=f"on {socket.gethostname()}"),
    )
    assert push(run, ready)[0] == 0
    for name in ("me/small-pretrain", "me/small-sft", "me/small"):
        for path, file in head(hub, name).items():
            text = file.data.decode(errors="ignore")
            for word in ("/tmp/", "/home/", str(Path.home()) + "/", socket.gethostname(), "data0/"):
                assert word not in text, (name, path, word)
        record = json.loads(head(hub, name)["manifest.json"].data)
        assert "request" not in record
        assert record["outputs"] == hashes.outputs(record["files"])
    sent = json.loads(head(hub, "me/small-sft")["manifest.json"].data)
    assert sent["config"]["deepspeed"] == "ds.json"
    assert sent["recipe"]["data"] == sent["recipe"]["name"] == "chats.jsonl"
    (parent,) = sent["parents"]
    assert parent["path"] == "pretrain"
    assert (parent["role"], parent["node"], parent["outputs"]) == (
        "parent",
        "pretrain",
        manifest.read(ready / "pretrain")["outputs"],
    )


def test_a_secret_stops_the_push_before_anything_leaves(run, ready, hub):
    """In a node's own file, and in a sample that the card would show: both are told at once."""
    edit(ready / "evaluate.json", lambda summary: summary["samples"][0]["answers"].update(sft=SECRETS["a GitHub token"]))
    template = ready / "dpo" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# " + SECRETS["an AWS access key"] + " #}")
    status, out, err = push(run, ready, "--force", "yes")
    assert status == 2
    assert "chat_template.jinja holds an AWS access key; nothing was pushed" in err
    assert err.count("README.md holds a GitHub token") == 3
    assert not any(line.startswith(("PUT", "POST")) for line in hub.log)
    assert not any(secret in out + err for secret in SECRETS.values())

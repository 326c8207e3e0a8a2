"""A recipe's rows arrive on a hub as they are, with a card that `datasets` reads; secrets among them stop the push."""

import json

import datasets
import pytest
from huggingface_hub import DatasetCard, HfApi

from pipeline import ROOT
from pipeline.data import recipe
from tests.hub import checked
from tests.test_leaks import SECRETS
from tests.test_push import head
from tests.test_rows import EXAMPLES, node


@pytest.fixture
def own(tmp_path, data):
    """A recipe of the test's own: a file of conversations."""
    text = f"type: messages\nsources:\n  - files: {data / 'chats.jsonl'}\nheld_out: 0.2\n"
    (tmp_path / "talk.yaml").write_text(text)
    return tmp_path / "talk.yaml"


def push(run, own, *flags):
    return run("push_data", "--hub", "me/talk", "--recipe", own, *flags)


def test_rows_arrive_as_they_are(run, own, hub, tmp_path):
    status, out, err = push(run, own, "--license", "mit", "--language", "en")
    assert status == 0, err
    assert "rows by load_dataset" in out
    assert hub.repos["dataset", "me/talk"].private
    where = HfApi(endpoint=hub.url).snapshot_download("me/talk", repo_type="dataset", cache_dir=tmp_path / "cache")
    for split in recipe.SPLITS:
        rows = datasets.load_dataset(where, "messages", split=split, cache_dir=str(tmp_path / "datasets"))
        assert list(rows) == recipe.load(str(own)).rows("messages", split, 42).kept
        assert len(rows) > 5
    card = head(hub, "me/talk", "dataset")["README.md"].data.decode()
    assert checked(card) == []
    data = DatasetCard(card).data
    assert (data.license, data.language, data.size_categories) == ("mit", "en", "n<1K")
    assert [entry["config_name"] for entry in data.configs] == ["messages"]
    for file in head(hub, "me/talk", "dataset").values():
        assert b"/tmp/" not in file.data


def test_a_second_push_makes_no_commit(run, own, hub):
    assert push(run, own)[0] == 0
    status, out, _ = push(run, own)
    assert status == 0
    assert "nothing changed, no commit" in out
    assert len(hub.repos["dataset", "me/talk"].commits) == 2
    assert "licence: unknown; --license says which" in out


def test_a_generated_recipe_has_a_subset_for_each_type(run, hub, monkeypatch, tmp_path):
    from data_recipes import world

    monkeypatch.setattr(world, "STORIES", 50)
    monkeypatch.setenv("CACHE", str(tmp_path))  # the code is the same, so its rows would be taken for those of other tests
    status, out, err = run("push_data", "--hub", "me/world", "--recipe", "world", "--public", "yes")
    assert status == 0, err
    assert {name for name in head(hub, "me/world", "dataset") if name.endswith(".parquet")} == {
        f"{type}/{split}.parquet" for type in recipe.load("world").types() for split in recipe.SPLITS
    }
    assert not hub.repos["dataset", "me/world"].private
    assert "public" in out


def test_a_secret_in_a_row_stops_the_push(run, own, hub, tmp_path):
    chats = (ROOT / "tests" / "data" / "chats.jsonl").read_text().splitlines()
    secret = SECRETS["a hub token"]
    (tmp_path / "mine.jsonl").write_text("\n".join([*chats, f'{{"messages": [{{"role": "user", "content": "x"}}, {{"role": "assistant", "content": "{secret}"}}]}}']) + "\n")  # fmt: skip
    own.write_text(f"type: messages\nsources:\n  - files: {tmp_path / 'mine.jsonl'}\n")
    status, out, err = push(run, own, "--force", "yes")
    assert status == 2
    assert "holds a hub token; nothing was pushed" in err
    assert "row" in err
    assert secret not in out + err
    assert not hub.repos


def test_rows_that_come_back_otherwise_are_no_success(run, own, hub, monkeypatch):
    from tests.hub import Handler

    ranged = Handler.ranged
    monkeypatch.setattr(Handler, "ranged", lambda self, data, headers: ranged(self, data[:-1] + b"x" if "parquet" in self.path and self.command == "GET" else data, headers))  # fmt: skip
    status, out, err = push(run, own)
    assert status == 1
    assert "what was read back is not what was pushed" in err
    assert "pushed: data set" not in out


def test_faults_of_the_command(run):
    status, _, err = run("push_data", "--hub", "x", "--recipe", "world", "--licens", "mit")
    assert status == 2
    assert "HUB: expected namespace/name" in err
    assert "licens: unknown key; did you mean license?" in err


def test_the_rows_of_a_node_are_pushed_by_its_name(run, hub, tmp_path):
    node(tmp_path / "runs" / "pairs", "preference", {"train": EXAMPLES["preference"], "held_out": EXAMPLES["preference"]})
    path = tmp_path / "runs" / "pairs" / "manifest.json"
    more = {"title": "Sampling", "node": "pairs", "seed": 42, "parents": [], "recipe": {"name": str(tmp_path / "mine.jsonl"), "type": "prompts", "data": str(tmp_path / "mine.jsonl")}}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    status, out, err = run("push_data", "--hub", "me/pairs", "--runs", tmp_path / "runs", "--node", "pairs")
    assert status == 0, err
    assert "rows by load_dataset" in out
    card = head(hub, "me/pairs", "dataset")["README.md"].data.decode()
    assert "The rows that tristage's node `pairs` (Sampling) made from mine.jsonl." in card
    assert "make push-data STAGE=pairs" in card
    assert str(tmp_path) not in card
    path.write_text(json.dumps(json.loads(path.read_text()) | {"family": "causal", "rows_type": ""}))
    status, _, err = run("push_data", "--hub", "me/pairs", "--runs", tmp_path / "runs", "--node", "pairs")
    assert status == 2
    assert "hands on a model and no rows; make push pushes models" in err

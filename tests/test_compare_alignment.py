"""One table of aligned models against the one that they come from."""

import json
import shutil

import pytest

from pipeline.chain import manifest
from tests.conftest import make_quietly


@pytest.fixture(scope="module")
def profile(chain, tmp_path_factory):
    """A profile `both`: two nodes on prompts of the world, the second from the first, and settings that name a third."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(chain, folder / "runs" / "both")
    flags = ["--max_completion_length", "4", "--max_steps", "1", "--per_device_train_batch_size", "4", "--num_generations", "4"]
    flags += ["--rewards", "{regex: {pattern: e}}"]
    for node, parent in (("rlhf-one", "sft"), ("rlhf-two", "rlhf-one")):
        where = folder / "runs" / "both"
        make_quietly("rlhf", "--parent", where / parent, "--output", where / node, *flags)
    (folder / "both").mkdir()
    settings = f"against: {folder}/runs/both/sft\nnodes: [rlhf-one, rlhf-two, rlhf-three]\nprompts: 8\nresamples: 50\nmax_new_tokens: 4\n"
    (folder / "both" / "compare_alignment.yaml").write_text(settings)
    return folder


@pytest.mark.slow
def test_every_node_is_held_against_the_same_model(profile, run):
    flags = ["--config", profile / "both" / "compare_alignment.yaml", "--runs", profile / "runs"]
    status, out, err = run("compare_alignment", *flags)
    assert status == 0, err
    folder = profile / "runs" / "both"
    summary = json.loads((folder / "compare_alignment.json").read_text())
    assert [row["node"] for row in summary["rows"]] == ["rlhf-one", "rlhf-two"]
    assert summary["missing"] == ["rlhf-three"]
    seconds = [manifest.read(folder / node)["seconds"] for node in ("rlhf-one", "rlhf-two")]
    assert summary["rows"][0]["minutes"] == pytest.approx(seconds[0] / 60)
    assert summary["rows"][1]["minutes"] == pytest.approx(
        sum(seconds) / 60
    )  # with the round before, without what both begin with
    for row in summary["rows"]:
        assert {"win_rate", "exact_match", "kl_to_parent", "answer_tokens"} <= row["figures"].keys()
        assert {one["against"] for one in row["comparisons"]} == {"sft", "even chances"}
        assert row["figures"]["answer_tokens"]["sft"]["n"] == 750
        assert 0 <= row["figures"]["answer_tokens"]["sft"]["value"] <= 4
    assert summary["rows"][0]["figures"]["answer_tokens"]["sft"] == summary["rows"][1]["figures"]["answer_tokens"]["sft"]
    lines = (folder / "compare_alignment.md").read_text().splitlines()
    assert lines[0].startswith("|  | win rate over sft | exact match | exact match - sft | KL to sft")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["rlhf-one", "rlhf-two", "sft"]
    assert "not finished, so not measured: rlhf-three" in out
    status, again, _ = run("compare_alignment", *flags)
    assert status == 0
    assert "measures" in out
    assert "measures" not in again  # nothing changed


def test_faults_are_told_at_once(profile, run, tmp_path):
    (tmp_path / "compare_alignment.yaml").write_text("node: [dpo]\n")
    status, _, err = run("compare_alignment", "--config", tmp_path / "compare_alignment.yaml")
    assert status == 2
    assert "node: unknown key" in err
    assert "against: is missing" in err
    assert "nodes: is missing" in err
    (tmp_path / "compare_alignment.yaml").write_text(f"nodes: [dpo]\nagainst: {profile}/runs/both/sft\n")
    status, _, err = run("compare_alignment", "--config", tmp_path / "compare_alignment.yaml", "--runs", tmp_path)
    assert status == 2
    assert "none of dpo is finished; run make PROFILE=" in err

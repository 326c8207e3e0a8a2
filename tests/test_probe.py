"""Figures of objectives on held-out text, the probe of frozen features, the count of operations, the comparison."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline import objectives
from pipeline.chain import manifest, profile
from pipeline.commands import compare_objectives
from pipeline.evaluation import probe
from pipeline.models import tokenization
from tests.conftest import mostly_slow
from tests.objectives import NAMES, ROWS, corpus, flags

pytest.importorskip("sklearn")


@pytest.mark.parametrize("name", mostly_slow(NAMES, "causal", "mlm", "contrastive", "skipgram"))
def test_every_objective_is_judged_on_held_out_text(run, tmp_path, name):
    rows = [{"text": row["text"] + f" It was day {number}."} for number, row in enumerate(ROWS * 40)]
    given = flags(name, tmp_path, "--max_steps", "3")
    corpus(tmp_path, rows)
    status, _, err = run("pretrain", *given)
    assert status == 0, err
    out = tmp_path / "evaluate.json"
    status, said, err = run("evaluate", "--runs", tmp_path, "--resamples", "20", "--rows", "60")
    assert status == 0, err
    found = json.loads(out.read_text())["nodes"]["out"]
    figures = found["figures"]
    wanted = {"rtd": "detection", "contrastive": "retrieval", "mlm_nsp": "pair_accuracy", "mlm_sop": "pair_accuracy"}.get(
        name, "loss"
    )
    assert "out" in figures[wanted]
    assert all(one["low"] <= one["value"] <= one["high"] for of in figures.values() for one in of.values())
    assert all(of["chance"]["value"] == pytest.approx(0.5) for of in figures.values() if "chance" in of)
    compared = {item["metric"] for item in found["comparisons"]}
    mine = {metric for metric in figures if metric in {one.name for one in objectives.load(name).metrics}}
    assert name == "causal" or all("untrained" in figures[metric] for metric in mine)
    assert found["metrics"].keys() == figures.keys()
    assert compared & {wanted, "bits_per_byte", "detection"}
    assert found["primary"]["metric"] in compared
    if wanted == "loss" and name not in ("causal", "skipgram", "cbow", "fusion"):  # after three steps it knows next to nothing
        assert figures["loss"]["out"]["value"] > figures["loss"]["unigram"]["value"]
    assert "unigram" in said or "chance" in said or "untrained" in said


@pytest.mark.parametrize("name", ["causal", "mlm", "rtd", "span_corruption", "denoising", "contrastive", "skipgram"])
def test_features_of_every_family(run, tmp_path, name):
    assert run("pretrain", *flags(name, tmp_path, "--max_steps", "3"))[0] == 0
    texts = [row["text"] for row in ROWS]
    record = manifest.read(tmp_path / "out")
    learned, again, control = (
        compare_objectives.features(tmp_path / "out", record, texts, random=random) for random in (False, False, True)
    )
    assert learned.shape == (len(texts), 32 if name == "skipgram" else 3 * 32)  # two layers, and the embeddings
    assert np.isfinite(learned).all()
    assert np.array_equal(learned, again)
    assert not np.allclose(learned, control, atol=1e-3)
    padded = compare_objectives.features(tmp_path / "out", record, [texts[0], texts[0] * 5])[0]
    assert np.allclose(padded, learned[0], atol=1e-5)  # padding is not read


@pytest.mark.parametrize("name", ["mlm", "rtd"])
def test_no_target_of_held_out_text_stands_in_what_is_read(run, tmp_path, name):
    from pipeline.objectives.evaluator import HeldOut

    assert run("pretrain", *flags(name, tmp_path, "--max_steps", "1"))[0] == 0
    record = manifest.read(tmp_path / "out")
    held_out = HeldOut(objectives.load(name), "out", str(tmp_path / "out"), record["config"], record["seed"])
    examples = held_out.examples(ROWS)
    batches = list(held_out.batches(examples, held_out.objective.collator(held_out.tokenizer, None, 1)))
    targets = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    share = targets / sum(len(example["input_ids"]) - 2 for example in examples)
    assert 0.10 < share < 0.145  # of 15%, without the tenth (of rtd the seventh) that was left as it is
    assert not any((batch["labels"] == batch["input_ids"]).any() for batch in batches)


@pytest.mark.parametrize(("epochs", "given"), [(0.0, []), (3.0, ["--num_train_epochs", "3.0"])])
def test_the_comparison_passes_on_budget_and_epochs(monkeypatch, tmp_path, epochs, given):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.extend(command) or subprocess.CompletedProcess([], 0))
    (tmp_path / "pretrain.yaml").write_text("recipe: world\n")
    node = profile.read_node(tmp_path / "pretrain.yaml")
    options = compare_objectives.Options(objectives={"mlm": {"learning_rate": 0.1}}, flops=5.0, epochs=epochs)
    assert compare_objectives.trained("mlm", options, node, tmp_path) == tmp_path / "mlm"
    assert ran[-4 - len(given) :] == ["--flops", "5.0", *given, "--learning_rate", "0.1"]


def test_a_probe_finds_what_is_there_and_no_more():
    rng = np.random.default_rng(0)
    groups = [f"g{number // 20}" for number in range(600)]
    labels = [["a", "b", "c"][number // 20 % 3] for number in range(600)]
    noise = rng.normal(size=(600, 8)).astype(np.float32)
    told = noise.copy()
    told[:, :3] += 6 * np.array([[label == kind for kind in "abc"] for label in labels])
    knows, guesses = probe.classify(told, labels, groups), probe.classify(noise, labels, groups)
    assert knows.accuracy().low > 0.9
    assert guesses.accuracy().low < 1 / 3 < guesses.accuracy().high + 0.05
    assert knows.accuracy(guesses).low > 0.4
    assert knows.accuracy().n == 30  # groups, not items


def test_a_group_is_never_on_both_sides():
    """Features that name the group and nothing else help nobody."""
    rng = np.random.default_rng(0)
    groups = [f"g{number // 20}" for number in range(600)]
    labels = [["a", "b"][number // 20 % 2] for number in range(600)]
    names = {group: rng.normal(size=200) for group in dict.fromkeys(groups)}
    told = np.array([names[group] for group in groups], dtype=np.float32)
    assert probe.classify(told, labels, groups).accuracy().value < 0.75
    shuffled = [f"h{number}" for number in rng.permutation(600)]  # every item for itself: the names give it away
    assert probe.classify(told, labels, shuffled).accuracy().value > 0.95


def test_operations_are_counted(tmp_path):
    from pipeline.training.flops import of_a_batch

    class Objective:
        def losses(self, model, batch):
            return {"loss": model(batch["input_ids"].float()).sum()}

    model = torch.nn.Linear(7, 5, bias=False)
    before = torch.get_rng_state()
    found = of_a_batch(Objective(), model, [{"input_ids": torch.zeros(3, 7), "row": [1, 2, 3]}] * 4)
    assert found == 2 * 3 * 7 * 5 * 2  # forward, and backward for the weight alone
    assert torch.equal(before, torch.get_rng_state())
    assert model.weight.grad is None


def test_a_budget_gives_steps(run, tmp_path):
    status, out, err = run(
        "pretrain", *flags("mlm", tmp_path), "--max_steps", "-1", "--flops", "2e8", "--num_train_epochs", "50"
    )
    assert status == 0, err
    assert "2e+08 floating point operations allow" in out
    first = int(out.split("operations allow ")[1].split(" steps")[0])
    (tmp_path / "again").mkdir()
    out = run("pretrain", *flags("mlm", tmp_path / "again"), "--max_steps", "-1", "--flops", "4e8", "--num_train_epochs", "50")[
        1
    ]
    assert int(out.split("operations allow ")[1].split(" steps")[0]) in (2 * first, 2 * first + 1)


@pytest.mark.slow
def test_objectives_are_compared(tmp_path):
    corpus(tmp_path, [{"text": row["text"] + f" It was day {number}."} for number, row in enumerate(ROWS * 4)])
    (tmp_path / "mine.yaml").write_text(f"type: text\nsources: [{{files: {tmp_path / 'text.jsonl'}}}]\nheld_out: 0.2\n")
    (tmp_path / "kinds.py").write_text(
        "def labels(split, seed):\n"
        "    for n in range(60):\n"
        "        if split == 'train':\n"
        "            yield {'text': 'The cat saw ' * (1 + n % 3), 'label': 'ab'[n % 2], 'group': str(n // 6)}\n"
    )
    small = [str(word).removeprefix("--") for word in flags("mlm", tmp_path)]
    wanted = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_length",
        "per_device_train_batch_size",
        "vocab_size",
    )
    profile = {key: int(small[small.index(key) + 1]) for key in wanted}
    (tmp_path / "pretrain.yaml").write_text(json.dumps(profile | {"recipe": str(tmp_path / "mine.yaml")}))
    (tmp_path / "compare.yaml").write_text(
        json.dumps(
            {
                "node": "pretrain",
                "objectives": {"mlm": {}, "skipgram": {"learning_rate": 0.1}},
                "flops": 1e7,
                "probe": str(tmp_path / "kinds.py"),
            }
        )
    )
    script = [sys.executable, "-m", "pipeline.commands.compare_objectives", "--config", tmp_path / "compare.yaml",
              "--output", tmp_path / "out"]  # fmt: skip
    done = subprocess.run([*script, "--resamples", "50"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| `mlm` |" in done.stdout
    assert "| TF-IDF |" in done.stdout
    found = json.loads((tmp_path / "out" / "compare.json").read_text())["objectives"]
    assert set(found) == {"TF-IDF", "majority", "mlm", "skipgram"}
    assert found["mlm"]["held_out"][0]["against"] == "unigram"
    kept = json.loads((tmp_path / "out" / "mlm.json").read_text())  # what was measured is not measured again
    (tmp_path / "out" / "mlm.json").write_text(json.dumps(kept | {"tokens_per_second": 12345.6}))
    done = subprocess.run([*script, "--resamples", "50"], capture_output=True, text=True)
    assert "| `mlm` |" in done.stdout
    assert "| 12,346 |" in done.stdout
    done = subprocess.run(
        [*script, "--resamples", "49", "--objectives", "{mlm: {}, causal: {parent: mlm}}"], capture_output=True, text=True
    )
    assert "| 12,346 |" not in done.stdout
    assert done.returncode == 2
    assert "mlm made a model of family masked, but pretrain takes causal" in done.stderr  # a parent by its name here
    done = subprocess.run([*script, "--objectives", "{guess: {}}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "objectives: guess: no such objective" in done.stderr
    done = subprocess.run([*script, "--node", "another"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "node: names no file beside it" in done.stderr


def test_a_sum_of_objectives_is_held_against_each_of_its_parts():
    rng = np.random.default_rng(0)
    groups = [f"play {number // 20}" for number in range(800)]
    shares = {"mlm": 0.5, "contrastive": 0.7, "fusion": 0.7}
    table = {name: {"right": (rng.random(800) < share).astype(float).tolist(), "parts": []} for name, share in shares.items()}
    table["fusion"]["parts"] = ["mlm", "contrastive", "rtd"]  # the last of which was not compared
    over = {name: compare_objectives.over_parts(name, table, groups, 500) for name in table}
    assert {name: list(found) for name, found in over.items()} == {
        "mlm": [],
        "contrastive": [],
        "fusion": ["mlm", "contrastive"],
    }
    right = {name: np.mean(found["right"]) for name, found in table.items()}
    for part, gain in over["fusion"].items():
        assert gain["value"] == pytest.approx(right["fusion"] - right[part])
        assert gain["n"] == 40  # plays
    assert over["fusion"]["mlm"]["low"] > 0.1
    assert over["fusion"]["contrastive"]["low"] < 0 < over["fusion"]["contrastive"]["high"]
    said = list(compare_objectives.rendered({"objectives": {}, "over": over}))
    assert [line.strip() for line in said[2:]] == [
        f"`fusion` over `{part}` alone, points of the probe, paired: {compare_objectives.interval(gain)}"
        for part, gain in over["fusion"].items()
    ]


def test_every_play_has_its_kind():
    from data_recipes import plays

    try:
        rows = list(plays.speeches())
    except Exception as error:
        pytest.skip(str(error))
    assert {kind: len(names) for kind, names in plays.KINDS.items()} == {"comedy": 14, "history": 10, "tragedy": 12}
    assert len({row["group"] for row in rows}) == 36
    assert all(len(row["text"]) >= 200 for row in rows)
    assert max(sum(row["group"] == name for row in rows) for name in plays.KINDS["comedy"]) == 60


def test_sentence_transformers_reads_an_embedder(run, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    assert run("pretrain", *flags("contrastive", tmp_path, "--max_steps", "3"))[0] == 0
    texts = [row["text"] for row in ROWS[:3]]
    told = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    assert np.allclose(told, probe.features(tmp_path / "out", texts)[:, -32:], atol=1e-5)


def test_gensim_reads_word_vectors(run, tmp_path):
    models = pytest.importorskip("gensim.models")
    assert run("pretrain", *flags("skipgram", tmp_path, "--max_steps", "3"))[0] == 0
    told = models.KeyedVectors.load_word2vec_format(tmp_path / "out" / "vectors.txt")
    model = objectives.load("skipgram").load_model(str(tmp_path / "out"))
    tokenizer = tokenization.load(str(tmp_path / "out"))
    for word in ("cat", "owl"):
        assert np.allclose(told[word], model.words.weight[tokenizer.convert_tokens_to_ids(word)].detach(), atol=1e-5)

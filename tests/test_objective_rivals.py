"""What counting says of hidden tokens and of pairs: by hand, against brute force, and that a model is held against the best of it."""

import json

import numpy as np
import pytest
import torch

from pipeline.evaluation import table
from pipeline.objectives import load
from pipeline.objectives._rivals import Bigrams, Lengths
from tests.objectives import WORDS, text_of

IGNORED = -100


def batch(ids, labels):
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def test_a_hidden_token_by_its_neighbours_against_brute_force():
    rng = np.random.default_rng(0)
    size, mask = 7, 6
    texts = [rng.integers(0, 6, rng.integers(3, 9)).tolist() for _ in range(30)]
    found = Bigrams([{"input_ids": text} for text in texts], size)
    counts = np.bincount(np.concatenate(texts), minlength=size) + 1.0
    frequent = counts / counts.sum()

    def beside(context, side):
        near = [text[place + side] for text in texts for place in range(len(text))
                if text[place] == context and 0 <= place + side < len(text)]  # fmt: skip
        kinds = len(set(near))
        return frequent if not near else (np.bincount(near, minlength=size) + kinds * frequent) / (len(near) + kinds)

    ids = [[0, mask, 3, mask, mask, 2], [mask, 1, 2, 5, 5, mask]]
    labels = [[IGNORED, 4, IGNORED, 1, 0, IGNORED], [3, IGNORED, IGNORED, IGNORED, IGNORED, 2]]
    nats, targets = found.scores(batch(ids, labels))
    for row in range(2):
        total = 0.0
        for place, label in enumerate(labels[row]):
            if label == IGNORED:
                continue
            left = beside(ids[row][place - 1], 1) if place else frequent
            right = beside(ids[row][place + 1], -1) if place + 1 < len(ids[row]) else frequent
            likely = left * right / frequent
            total -= np.log(likely[label] / likely.sum())
        assert nats[row] == pytest.approx(total)
    assert targets == [3, 2]


def test_neighbours_that_tell_all_leave_nothing():
    """Of the texts 0 1 2 3 0 1 2 3 … a hidden token is sure by either neighbour; of drawn ones it is as by its frequency."""
    cycle = [{"input_ids": [0, 1, 2, 3] * 50}]
    nats, targets = Bigrams(cycle, 5).scores(batch([[0, 4, 2, 4, 0, 1]], [[IGNORED, 1, IGNORED, 3, IGNORED, IGNORED]]))
    assert sum(nats) / sum(targets) < 0.001
    rng = np.random.default_rng(1)
    drawn = rng.choice(4, 40_000, p=[0.1, 0.2, 0.3, 0.4])
    held_out = rng.choice(4, 4000, p=[0.1, 0.2, 0.3, 0.4])
    hidden = rng.random(4000) < 0.15
    one = batch([np.where(hidden, 4, held_out)], [np.where(hidden, held_out, IGNORED)])
    nats, targets = Bigrams([{"input_ids": drawn}], 5).scores(one)
    entropy = -sum(p * np.log(p) for p in (0.1, 0.2, 0.3, 0.4))
    assert sum(nats) / sum(targets) == pytest.approx(entropy, abs=0.05)


def pair(first, second, label):
    return {"token_type_ids": [0] * (first + 2) + [1] * (second + 1), "pair": label}


@pytest.mark.parametrize("swapped", [False, True])
def test_lengths_tell_what_they_tell(swapped):
    """A threshold on the difference, whichever side it is on; equal lengths tell nothing."""
    rng = np.random.default_rng(0)

    def drawn(gap, count=400):
        for _ in range(count):
            label = int(rng.random() < 0.5)
            longer = int(rng.integers(0, 12)) + (gap if bool(label) != swapped else 0)
            yield pair(20 + longer, 20, label)

    def accuracy(gap):
        known, held_out = list(drawn(gap)), list(drawn(gap))
        width = max(len(one["token_type_ids"]) for one in held_out)
        kinds = [one["token_type_ids"] + [0] * (width - len(one["token_type_ids"])) for one in held_out]
        there = [[1] * len(one["token_type_ids"]) + [0] * (width - len(one["token_type_ids"])) for one in held_out]
        made = {"token_type_ids": torch.tensor(kinds), "attention_mask": torch.tensor(there), "pair": torch.tensor([one["pair"] for one in held_out])}  # fmt: skip
        return float(np.mean(Lengths(known).scores(made)["pair_accuracy"][0]))

    assert accuracy(12) == 1.0
    assert accuracy(6) == pytest.approx(0.75, abs=0.06)
    assert accuracy(0) == pytest.approx(0.5, abs=0.07)


def test_lengths_of_pairs_as_they_are_made_tell_nothing(tokenizers):
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join("The " + " ".join(rng.choice(WORDS, rng.integers(2, 14))) + "." for _ in range(12))} for _ in range(300)]  # fmt: skip
    for name in ("mlm_sop", "mlm_nsp"):
        found = list(load(name).examples(text_of(tokenizers["wordpiece"], rows, max_length=64)))
        half = len(found) // 2
        rule = Lengths(found[:half])
        right = []
        for one in found[half:]:
            made = {key: torch.tensor([one[key]]) for key in ("token_type_ids", "pair")}
            right += rule.scores(made | {"attention_mask": torch.ones_like(made["token_type_ids"])})["pair_accuracy"][0]
        assert len(right) > 300
        assert np.mean(right) < 0.5 + 3 * 0.5 / np.sqrt(len(right)), name


def test_a_masked_pretraining_is_held_against_the_best_of_counting(run, tmp_path):
    """Text in which neighbours tell much: a model of few steps stands at its unigram, and both are told."""
    rng = np.random.default_rng(0)
    chain = {word: rng.choice(WORDS, 2) for word in WORDS}

    def told():
        word, words = str(rng.choice(WORDS)), []
        for _ in range(60):
            words.append(word)
            word = str(rng.choice(chain[word]))
        return " ".join(words)

    text = tmp_path / "rows.jsonl"
    text.write_text("".join(json.dumps({"text": told()}) + "\n" for _ in range(800)))
    status, _, err = run(
        "pretrain", "--output", tmp_path / "runs/pretrain", "--data", text, "--objective", "mlm", "--max_steps", "3", "--max_length", "32",
        "--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--vocab_size", "200", "--learning_rate", "1e-4",
    )  # fmt: skip
    assert status == 0, err
    status, out, err = run("evaluate", "--runs", tmp_path / "runs")
    assert status == 0, err
    found = json.loads((tmp_path / "runs/evaluate.json").read_text())["nodes"]["pretrain"]
    loss = {name: one["value"] for name, one in found["figures"]["loss"].items()}
    assert loss["neighbours' bigrams"] < loss["unigram"] - 0.5
    assert found["primary"]["against"] == "neighbours' bigrams"
    assert not found["primary"]["better"]
    assert "warning: pretrain is no better by loss than neighbours' bigrams (baseline)" in out
    assert "unigram (baseline)" in next(line for line in out.splitlines() if "warning" in line)


def test_whoever_is_better_than_all_is_not_warned_of():
    one = {"metric": "loss", "against": "unigram", "role": "baseline", "better": True, "n": 100}
    models = {name: {"role": "baseline", "asked": ""} for name in ("unigram", "5-gram", "few")}
    made = {"primary": one, "comparisons": [one], "models": models}
    assert list(table.warnings("mine", made)) == []
    made["comparisons"] = [one, one | {"against": "few", "better": False, "n": 29}]
    assert list(table.warnings("mine", made)) == []
    made["comparisons"].append(one | {"against": "5-gram", "better": False})
    assert list(table.warnings("mine", made)) == ["mine is no better by loss than 5-gram (baseline)"]

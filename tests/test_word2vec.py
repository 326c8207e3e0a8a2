"""Skip-gram and CBOW: windows and negatives, by hand and as they are drawn."""

import numpy as np
import pytest
import torch

from pipeline import objectives
from pipeline.data import token_tables
from tests.objectives import write_rows


@pytest.mark.parametrize(
    ("name", "contexts", "targets"),
    [
        ("skipgram", [[5], [6], [6], [7]], [6, 5, 7, 6]),
        ("cbow", [[6, -1], [5, 7], [6, -1]], [5, 6, 7]),
    ],
)
def test_word_windows_by_hand(tokenizers, name, contexts, targets):
    words = tokenizers["words"]
    dataset = write_rows([{"input_ids": [5, 6, 7], "row": 0}])
    objective = objectives.load(name, {"window": 1, "negatives": 2, "threshold": 1.0})
    batch = objective.collator(words, dataset, 1)([{"input_ids": [5, 6, 7], "example": 0}])
    assert batch["contexts"].tolist() == contexts
    assert batch["input_ids"][:, 0].tolist() == targets
    assert batch["input_ids"].shape[1] == 3
    assert not np.isin(batch["input_ids"][:, 1:], words.all_special_ids).any()


def test_words_are_drawn_kept_and_reached_as_the_paper_says(tokenizers, tmp_path):
    """Of many windows: negatives by frequency to the power 3/4, frequent words left out, reach uniform from 1 to the window."""
    words = tokenizers["words"]
    rng = np.random.default_rng(0)
    usual, rare = words.convert_tokens_to_ids(["the", "glad"])
    rows = [
        {"input_ids": rng.choice([usual, rare, 9, 10], 40, p=[0.81, 0.01, 0.09, 0.09]).tolist(), "row": 0} for _ in range(300)
    ]
    dataset = token_tables.numbered(write_rows(rows, tmp_path / "rows.arrow"))
    batch = objectives.load("skipgram", {"threshold": 0.09}).collator(words, dataset, 1)(list(dataset))
    drawn = np.bincount(batch["input_ids"][:, 1:].flatten(), minlength=len(words))
    assert drawn[usual] / drawn[9] == pytest.approx(9**0.75, rel=0.1)
    contexts = np.bincount(batch["contexts"].flatten(), minlength=len(words))
    assert contexts[usual] / contexts[9] == pytest.approx(9 / 3, rel=0.1)  # kept with √(t / f) = 1 / 3
    whole = objectives.load("skipgram", {"threshold": 1.0, "window": 4}).collator(words, dataset, 1)(list(dataset))
    pairs = len(whole["contexts"]) / (300 * 40)
    assert pairs == pytest.approx(2 * 2.5, rel=0.06)  # 2.5 on each side on average, fewer at the edges


def test_word_vectors_begin_at_chance_and_lean_the_right_way(tokenizers):
    objective = objectives.load("cbow")
    model = objective.build_model(tokenizers["words"], "word2vec", hidden_size=4)
    batch = {"contexts": torch.tensor([[5, 6], [7, -1]]), "input_ids": torch.tensor([[8, 9, 10, 9, 11, 9], [5, 6, 7, 6, 8, 6]])}
    assert objective.losses(model, batch)["loss"].item() == pytest.approx(2 * 6 * np.log(2), rel=1e-5)
    model.others.weight.data[5] = 50 * model.words.weight.data[7] / model.words.weight.data[7].norm() ** 2
    right, _wrong = model(**batch)
    assert right[1].item() == pytest.approx(50, rel=1e-4)
    assert objective.losses(model, batch)["loss"].item() < 2 * 6 * np.log(2)

"""The contrastive objective: the two views of a text, by hand, and what is read of a document."""

import numpy as np
import pytest
import torch

from pipeline import objectives
from pipeline.data import token_tables
from pipeline.data.batches import pad
from tests.objectives import ROWS, Scripted, text_of, write_rows


def test_contrastive_by_hand():
    """Embeddings put in by hand: -log softmax of the cosine over τ, of the second view given the first."""
    objective = objectives.load("contrastive", {"temperature": 0.5})

    class Views(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            # two texts, two views: each (1, 0) then (0.6, 0.8); and (0, 1) twice
            states = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.6, 0.8], [0.0, 1.0]]).unsqueeze(1).expand(4, 3, 2)
            return type("Out", (), {"last_hidden_state": states})

    ids = torch.ones(2, 3, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": ids, "views": torch.tensor([[0, 1, 0, 1]] * 2)}
    one = -np.log(np.exp(0.6 / 0.5) / (np.exp(0.6 / 0.5) + np.exp(0)))
    two = -np.log(np.exp(1 / 0.5) / (np.exp(0.8 / 0.5) + np.exp(1 / 0.5)))
    assert objective.losses(Views(), batch)["loss"].item() == pytest.approx(one + two, rel=1e-5)
    assert objective.counts(batch) == {"loss": 2}


def test_contrastive_reads_two_stretches_by_hand(tokenizers):
    words = tokenizers["wordpiece"]
    first, last = words.cls_token_id, words.sep_token_id
    objective = objectives.load("contrastive", {"crop": 0.5})
    texts = [[first, 30, 31, 32, 33, last], [first, 40, 41, last]]
    starts = [[0, 2], [1, 0]]  # of two tokens in four, and of one in two
    rows = [objective.corrupt({"input_ids": ids}, words, Scripted(each)) for ids, each in zip(texts, starts, strict=True)]
    batch = pad(rows, words.pad_token_id)
    assert batch["views"].tolist() == [[0, 2, 2, 4], [1, 2, 0, 1]]
    seen = []

    class Reader(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            seen.append([ids[: mask.sum()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)])
            return type("Out", (), {"last_hidden_state": torch.ones(*input_ids.shape, 2)})

    objective.losses(Reader(), batch)
    # the first views of all texts, then the second ones, each between the marks
    assert seen == [
        [[first, 30, 31, last], [first, 41, last], [first, 32, 33, last], [first, 40, last]],
    ]
    seen.clear()
    objective.scores(Reader(), batch)  # which half belongs to which: the whole text is read, whatever was cropped
    assert seen[0] == [[first, 30, 31, last], [first, 40, last], [first, 32, 33, last], [first, 41, last]]


def test_contrastive_reads_sentences_or_as_much_as_fits(tokenizers):
    words = tokenizers["wordpiece"]
    short, long = (
        list(objectives.load("contrastive", {"sentences": sentences}).examples(text_of(words, max_length=32)))
        for sentences in (True, False)
    )
    assert len(short) == 3 * 3 * len(ROWS)
    assert max(len(example["input_ids"]) for example in long) == 32
    inside = [token for row in ROWS for token in words(row["text"], add_special_tokens=False)["input_ids"]]
    assert [token for example in long for token in example["input_ids"][1:-1]] == inside


def test_what_contrastive_does_not_read_is_counted(tokenizers):
    rows = text_of(tokenizers["wordpiece"], [{"text": "Glad. The cat saw the dog and the hen and the owl and the fox."}], 8)
    assert [len(example["input_ids"]) for example in objectives.load("contrastive").examples(rows)] == [8]
    assert rows.truncated == {"texts of fewer than 4 tokens": 1, "ends of sentences of more than 8 tokens": 1}


def test_stretches_depend_on_seed_epoch_and_example_alone(tokenizers, tmp_path):
    words, objective = tokenizers["wordpiece"], objectives.load("contrastive", {"crop": 0.4})
    dataset = token_tables.numbered(write_rows(list(objective.examples(text_of(words))), tmp_path / "rows.arrow"))

    def made(*places, seed=1, epoch=0):
        collator = objective.collator(words, dataset, seed)
        collator.epoch = epoch
        batch = collator([dataset[place] for place in places])
        for length, (start, end, other, stop) in zip(batch["attention_mask"].sum(1) - 2, batch["views"].tolist(), strict=True):
            assert 0 <= start < end <= length
            assert 0 <= other < stop <= length
            assert end - start == stop - other == round(0.4 * int(length))
        return batch["views"].tolist()

    every = range(len(dataset))
    assert made(*every) == made(*every)
    assert made(*reversed(every)) == made(*every)[::-1]
    assert made(*every, epoch=1) != made(*every) != made(*every, seed=2)
    assert {start for start, *_ in made(*every)} == {0, *range(1, max(start for start, *_ in made(*every)) + 1)}

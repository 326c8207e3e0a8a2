"""Retrieval: rows, which texts of a batch are negatives, the loss, ranks by hand, embeddings of new texts, what is refused."""

import json

import numpy as np
import pytest
import torch

from pipeline.chain import manifest
from pipeline.data import types
from pipeline.data.recipe import Rows
from pipeline.models import tokenization
from pipeline.system.errors import UserError
from pipeline.tasks import load
from pipeline.tasks.retrieval import Ranked, _excluded
from tests.test_finetune import flags, write_rows
from tests.test_tasks import ROWS, TEXTS, examples_of

TASK = load("retrieval")


def batch_of(*rows):
    return Ranked(0)([dict(zip(("input_ids", "positive_ids", "negative_ids"), row, strict=False)) for row in rows])


def ranks(rows, predictions):
    found = TASK.figures(rows, predictions)
    return [line["rank"] for line in predictions], {name: float(one.of(one.items.sum(0))) for name, one in found.items()}


def test_formats_of_sentence_transformers_are_detected():
    def converted(row):
        return types.recognise(row, "triplets", "here").convert(row)

    assert converted({"anchor": "a", "positive": "b"}) == {"text": "a", "positive": "b"}
    assert converted({"query": "a", "answer": "b", "negative": "c"}) == {"text": "a", "positive": "b", "negative": "c"}
    assert types.load("triplets").fault({"text": "a", "positive": " "}) == "empty positive"


def test_what_belongs_to_a_text_is_no_negative_of_it():
    """Row 2 asks what row 0 asks, so their positives are no negatives of each other; row 1's negative is row 0's positive."""
    batch = batch_of(([1], [5], [7]), ([2], [6], [5]), ([1], [8], [9]))
    assert batch["input_ids"].tolist() == [[1], [2], [1], [5], [6], [8], [7], [5], [9]]
    assert batch["positives"].tolist() == [0, 1, 2]
    wanted = [[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0]]
    assert _excluded(batch["input_ids"].view(1, -1), 3).int().tolist() == wanted
    assert _excluded(torch.tensor([[1, 5, 7], [2, 6, 5], [1, 8, 9]]), 1).int().tolist() == [  # a row a process
        [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0],
    ]  # fmt: skip


def _loss(parents):
    """Return the loss of a batch without equal texts, and the embeddings of its texts and of their positives."""
    from pipeline.models.embedder import embeddings

    _, words, model, made, _ = examples_of("retrieval", parents["mlm"], ROWS["retrieval"][:6])
    batch = TASK.collator(words, None)([{key: value for key, value in row.items() if key != "row"} for row in made])
    with torch.no_grad():
        loss = TASK.losses(model.eval(), batch)["loss"].item() / TASK.counts(batch)["loss"]
        return loss, *embeddings(model, batch).chunk(2)


def test_the_loss_by_its_definition(parents):
    loss, one, two = _loss(parents)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(one @ two.T * 20, torch.arange(6)).item(), rel=1e-5)


@pytest.mark.slow  # for its import
def test_the_loss_is_that_of_sentence_transformers(parents):
    losses = pytest.importorskip("sentence_transformers.losses")
    loss, one, two = _loss(parents)
    theirs = losses.MultipleNegativesRankingLoss(None).compute_loss_from_embeddings([one, two], None).item()
    assert loss == pytest.approx(theirs, rel=1e-5)


def test_ranks_by_hand():
    """By words in common: the first finds its own, the second is nearer to another, the third ties with one and so is second."""
    rows = [
        {"text": "a b c", "positive": "a b d"},
        {"text": "x y", "positive": "x z w v", "negative": "x y q"},
        {"text": "m n", "positive": "m", "negative": "n"},
    ]
    places, figures = ranks(rows, TASK.baseline([], rows))
    assert places == [1, 2, 2]
    assert figures == pytest.approx({"accuracy_at_1": 1 / 3, "mrr": 2 / 3})


def test_another_positive_of_the_same_text_is_no_mistake():
    rows = [{"text": "a b", "positive": "a b c"}, {"text": "a b", "positive": "a b"}, {"text": "d", "positive": "d a"}]
    assert ranks(rows, TASK.baseline([], rows))[0] == [1, 1, 1]


def test_the_rival_ranks_by_words_that_are_rare():
    pytest.importorskip("sklearn")
    rows = ROWS["retrieval"]
    ((name, predicted),) = TASK.rivals(rows[::2], rows[1::2])
    assert name == "cosine of TF-IDF"
    assert ranks(rows[1::2], predicted)[1]["accuracy_at_1"] > 0.3


def test_more_rows_than_are_ranked_at_once_have_the_same_ranks(monkeypatch):
    from pipeline.tasks import retrieval

    rows = ROWS["retrieval"][:20]
    whole = TASK.baseline([], rows)
    monkeypatch.setattr(retrieval, "_PART", 3)
    assert TASK.baseline([], rows) == whole


def test_what_ends_up_near_is_told_against_the_parent_and_new_texts_get_embeddings(run, parents, tmp_path):
    from transformers import AutoModel

    rows = [{"anchor": f"{text} {number}", "positive": f"{number} {text.split()[1]}"} for number, text in enumerate(TEXTS * 3)]
    given = flags("retrieval", parents, tmp_path, "--max_steps", "60", "--learning_rate", "3e-3")
    given[given.index("--data") + 1] = write_rows(tmp_path / "rows.jsonl", rows)
    status, _, err = run("finetune", *given, "--per_device_train_batch_size", "16")
    assert status == 0, err
    record = manifest.read(tmp_path / "out")
    (found,) = [one for one in record["evaluation"]["comparisons"] if (one["metric"], one["against"]) == ("mrr", "parent as it was")]  # fmt: skip
    assert found["value"] > 0
    new = tmp_path / "new.txt"
    new.write_text("The cat saw it.\nThe dog was glad.\n")
    status, _, err = run("predict", "--runs", tmp_path, "--node", "out", "--data", new)
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / "out-predictions.jsonl").read_text().splitlines()]
    model, words = AutoModel.from_pretrained(tmp_path / "out").eval(), tokenization.load(str(tmp_path / "out"))
    with torch.no_grad():
        vector = model(**words("The cat saw it.", return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
    assert lines[0]["row"] == {"text": "The cat saw it."}
    assert lines[0]["said"]["embedding"] == pytest.approx((vector / np.linalg.norm(vector)).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--gradient_accumulation_steps", "2"],
            "gradient_accumulation_steps: 2 would cut the batch, which holds the negatives",
        ),
        (["--per_device_train_batch_size", "1"], "per_device_train_batch_size: 1 leaves no negative"),
    ],
)
def test_a_batch_that_holds_too_few_negatives_is_refused(run, parents, tmp_path, more, said):
    status, _, err = run("finetune", *flags("retrieval", parents, tmp_path), *more)
    assert status == 2
    assert said in err


def test_negatives_in_some_rows_alone_are_refused():
    with pytest.raises(UserError, match="some rows have a negative and some have none"):
        TASK.labels([{"text": "a", "positive": "b"}, {"text": "a", "positive": "b", "negative": "c"}])


def test_predictions_of_pairs_say_rank_and_score(parents):
    _, words, model, _, _ = examples_of("retrieval", parents["mlm"], ROWS["retrieval"][:5])
    said = TASK.predict(model, words, Rows(kept=ROWS["retrieval"][:5]), 32)
    assert all(1 <= line["rank"] <= 5 and -1 <= line["score"] <= 1.0001 for line in said)

"""What holds for every objective of text: random choices, architectures, dropout, scores and their metrics."""

import pytest
import torch

from pipeline import objectives
from pipeline.data import token_tables
from tests.objectives import NAMES, ROWS, text_of, write_rows


@pytest.mark.parametrize("name", NAMES)
def test_choices_depend_on_seed_epoch_and_example_alone(tokenizers, tmp_path, name):
    objective = objectives.load(name)
    tokenizer = tokenizers[objective.tokenizer_type]
    rows = list(objective.examples(text_of(tokenizer)))
    dataset = token_tables.numbered(write_rows(rows, tmp_path / "rows.arrow"))

    def made(*places, seed=1, epoch=0):
        """Each example as it is in a batch with others, without its padding."""
        collator = objective.collator(tokenizer, dataset, seed)
        if hasattr(collator, "epoch"):
            collator.epoch = epoch
        batch = collator([dataset[place] for place in places])
        if name == "fusion":  # whose columns bear the names of its parts
            batch = {key.removeprefix("mlm_"): value for key, value in batch.items() if key.startswith("mlm_")}
        if "contexts" in batch:  # windows of all texts in a row
            return [sorted(map(tuple, batch["input_ids"].tolist()))]
        ends = batch.get("attention_mask", batch["input_ids"] >= 0).sum(1).tolist()
        return [row[:end].tolist() for row, end in zip(batch["input_ids"], ends, strict=True)]

    first = made(3, 1)
    if len(first) == 2:
        assert made(1, 5, 3)[2] == first[0]  # wherever it stands, whatever is beside it
    assert made(3, 1) == first
    if name in ("causal", "contrastive"):  # nothing is drawn of the text; dropout and stretches make the views
        return
    assert made(3, 1, epoch=1) != first
    assert made(3, 1, seed=2) != first


@pytest.mark.parametrize(
    ("name", "architecture"), [(name, kind) for name in NAMES for kind in objectives.load(name).architectures]
)
def test_every_architecture_reads_the_longest_row(tokenizers, tmp_path, name, architecture):
    objective = objectives.load(name)
    tokenizer = tokenizers[objective.tokenizer_type]
    rows = list(
        objective.examples(text_of(tokenizer, rows=[{"text": row["text"] + row["text"]} for row in ROWS], max_length=32))
    )
    dataset = token_tables.numbered(write_rows(rows, tmp_path / "rows.arrow"))
    model = objective.build_model(
        tokenizer, architecture, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32
    )
    longest = sorted(dataset, key=lambda row: -len(row["input_ids"]))[:2]
    batch = objective.collator(tokenizer, dataset, 1)([row | {} for row in longest])
    batch.pop("row", None)
    losses = objective.losses(model, batch)
    assert losses.keys() == objective.weights.keys() == objective.counts(batch).keys()
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert sum(parameter.grad is not None for parameter in model.parameters()) > 1


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        (name, kind)
        for name in NAMES
        if name not in ("causal", "contrastive", "skipgram", "cbow", "fusion")  # of which fusion is with contrastive
        for kind in objectives.load(name).architectures
    ],
)
def test_pretraining_goes_without_dropout(tokenizers, tmp_path, name, architecture):
    objective = objectives.load(name)
    tokenizer = tokenizers[objective.tokenizer_type]
    dataset = token_tables.numbered(write_rows(list(objective.examples(text_of(tokenizer))), tmp_path / "rows.arrow"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    model = objective.build_model(tokenizer, architecture, **sizes).train()
    batch = objective.collator(tokenizer, dataset, 1)([dataset[0], dataset[1]])
    batch.pop("row", None)
    found = []
    for _ in range(2):
        losses = objective.losses(model, batch)
        found.append(next(iter(losses.values())).item())  # of rtd the generator's: the other one is of what was drawn
    assert found[0] == found[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_score_is_described_by_a_metric(tokenizers, tmp_path, name):
    """What `scores` gives is declared in `metrics`, with a sentence, and so is what is compared with chance."""
    objective = objectives.load(name)
    tokenizer = tokenizers[objective.tokenizer_type]
    dataset = token_tables.numbered(write_rows(list(objective.examples(text_of(tokenizer))), tmp_path / "rows.arrow"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64}
    model = objective.build_model(tokenizer, objective.architectures[0], **sizes).eval()
    collator = objective.collator(tokenizer, dataset, 1)
    batch = objective.scorable_targets(collator([{**dataset[number]} for number in range(4)]))
    batch.pop("row", None)
    with torch.no_grad():
        found = objective.scores(model, batch)
    names = {metric.name for metric in objective.metrics}
    assert set(found) == names
    assert names >= {*objective.chance_level, *objective.unigram_scores(collator, batch)}
    assert all(" " in metric.meaning and metric.better for metric in objective.metrics)


def test_helpers_are_no_objectives():
    assert all(objectives.load(name) for name in objectives.known())

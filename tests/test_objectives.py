"""Every objective: what the model sees and has to predict, its loss in parts, its metrics."""

import numpy as np
import pytest
import torch

from pipeline import objectives
from pipeline.data import token_tables, tokens
from pipeline.data.batches import pad
from pipeline.models import tokenization
from pipeline.objectives._documents import spans
from pipeline.system.errors import UserError
from tests.objectives import NAMES, ROWS, WORDS, text_of, write_rows

_ = tokens.IGNORED


class Scripted:
    """A generator of random numbers that says what the test tells it to."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __getattr__(self, name):
        return lambda *_, **__: np.array(self.answers.pop(0)) if isinstance(self.answers[0], list) else self.answers.pop(0)


def shown(found, *keys):
    return {key: list(found[key]) for key in keys}


# Each by hand: the ids of a text, the random choices, what the model sees, what it has to predict.


def test_mlm_by_hand(tokenizers):
    words = tokenizers["wordpiece"]
    mask, first, last = words.mask_token_id, words.cls_token_id, words.sep_token_id
    text = {"input_ids": [first, 30, 31, 32, 33, 34, last]}
    rng = Scripted([1, 3, 5], [0.9, 0.0, 0.9, 0.85, 0.9, 0.95, 0.9], [77])  # chosen, their fates, a random token
    found = objectives.load("mlm").corrupt(text, words, rng)
    assert shown(found, "input_ids", "labels") == {
        "input_ids": [first, mask, 31, 32, 33, 77, last],
        "labels": [_, 30, _, 32, _, 34, _],
    }


def test_whole_words_by_hand(tokenizers):
    words = tokenizers["wordpiece"]
    piece = next(number for number in range(5, len(words)) if words.convert_ids_to_tokens(number).startswith("##"))
    start = next(number for number in range(5, len(words)) if words.convert_ids_to_tokens(number).isalpha())
    mask, first, last = words.mask_token_id, words.cls_token_id, words.sep_token_id
    text = {"input_ids": [first, start, piece, piece, start, start, last]}
    rng = Scripted([1, 2, 3], [0.0] * 7, [])  # the first word comes first
    found = objectives.load("mlm", {"whole_words": True, "mask_share": 0.4}).corrupt(text, words, rng)
    assert shown(found, "input_ids", "labels") == {
        "input_ids": [first, mask, mask, mask, start, start, last],
        "labels": [_, start, piece, piece, _, _, _],
    }


def test_next_sentence_and_order_by_hand():
    first, follows, other = [1, 2], [3, 4], [8, 9]
    nsp, sop = objectives.load("mlm_nsp"), objectives.load("mlm_sop")
    assert nsp.pair(first, follows, other, Scripted(0.4)) == (first, follows, 0, True)
    assert nsp.pair(first, follows, other, Scripted(0.6)) == (first, other, 1, False)
    assert sop.pair(first, follows, other, Scripted(0.4)) == (first, follows, 0, True)
    assert sop.pair(first, follows, other, Scripted(0.6)) == (follows, first, 1, True)


@pytest.mark.parametrize("name", ["mlm_nsp", "mlm_sop"])
def test_pairs_are_what_they_say(tokenizers, name):
    """Read back: segments in their kinds, the label true, both labels as often, a stranger never of the same document."""
    words = tokenizers["wordpiece"]
    found = list(objectives.load(name).examples(text_of(words, max_length=40)))
    labels = [example["pair"] for example in found]
    assert 0.25 < np.mean(labels) < 0.75
    strangers = 0
    plain = [words.decode(words.encode(row["text"], add_special_tokens=False)).replace(" ", "") for row in ROWS]
    for example in found:
        ids, kinds = np.array(example["input_ids"]), np.array(example["token_type_ids"])
        assert len(ids) == len(kinds) <= 40
        assert ids[0] == words.cls_token_id
        assert list(np.flatnonzero(ids == words.sep_token_id)) == [np.flatnonzero(kinds == 0)[-1], len(ids) - 1]
        one, two = (words.decode(ids[kinds == kind], skip_special_tokens=True).replace(" ", "") for kind in (0, 1))
        own = plain[example["row"]]
        assert one in own
        if example["pair"] == 0:
            assert one + two in own
        elif name == "mlm_nsp":
            strangers += two not in own
            assert any(two in text for number, text in enumerate(plain) if number != example["row"])
        else:
            assert two + one in own
    if name == "mlm_nsp":
        assert strangers > 0.5 * sum(labels)  # the documents share sentences, so not all of them


def test_the_length_of_a_pair_does_not_tell_its_label(tokenizers):
    """Over documents of sentences of many lengths: no threshold on the length is right much more often than chance."""
    rng = np.random.default_rng(0)
    rows = [
        {"text": " ".join("The " + " ".join(rng.choice(WORDS, rng.integers(2, 14))) + "." for _ in range(12))}
        for _ in range(150)
    ]
    found = list(objectives.load("mlm_nsp").examples(text_of(tokenizers["wordpiece"], rows, max_length=64)))
    lengths, labels = (
        np.array([len(example["input_ids"]) for example in found]),
        np.array([example["pair"] for example in found]),
    )
    assert len(found) > 500
    best = max(max(np.mean((lengths >= cut) == labels), np.mean((lengths < cut) == labels)) for cut in set(lengths))
    assert best < 0.6
    strangers = {tuple(example["input_ids"][example["token_type_ids"].index(1) :]) for example in found if example["pair"]}
    assert len(strangers) > 0.9 * labels.sum()  # from everywhere, not from one place


def test_the_lengths_of_two_segments_do_not_tell_their_order(tokenizers):
    """A window ends before the sentence that does not fit, so its last sentence is short; swapped, that would come first."""
    rng = np.random.default_rng(0)
    rows = [
        {"text": " ".join("The " + " ".join(rng.choice(WORDS, rng.integers(2, 14))) + "." for _ in range(12))}
        for _ in range(400)
    ]
    found = list(objectives.load("mlm_sop").examples(text_of(tokenizers["wordpiece"], rows, max_length=64)))
    second = np.array([sum(example["token_type_ids"]) - 1 for example in found])
    longer = len_of(found) - second - second
    labels = np.array([example["pair"] for example in found])
    assert len(found) > 1000
    means = [longer[labels == label].mean() for label in (0, 1)]
    assert abs(means[0] - means[1]) < 4 * longer.std() / np.sqrt(len(found) / 4)
    best = max(max(np.mean((longer > cut) == labels), np.mean((longer <= cut) == labels)) for cut in set(longer))
    assert best < 0.5 + 3 * 0.5 / np.sqrt(len(found))


def len_of(found):
    """Tokens of both segments, (examples,)."""
    return np.array([len(example["input_ids"]) - 3 for example in found])


@pytest.mark.parametrize("name", ["mlm", "mlm_sop", "rtd"])
def test_whole_words_are_refused_where_a_vocabulary_does_not_tell_them(tokenizers, name):
    with pytest.raises(UserError, match="whole_words: the tokenizer has no WordPiece vocabulary"):
        list(objectives.load(name, {"whole_words": True}).examples(text_of(tokenizers["bytes"], max_length=40)))
    assert list(objectives.load(name, {"whole_words": True}).examples(text_of(tokenizers["wordpiece"], max_length=40)))


def test_rtd_by_hand(tokenizers):
    words = tokenizers["wordpiece"]
    mask, first, last = words.mask_token_id, words.cls_token_id, words.sep_token_id
    text = {"input_ids": [first, 30, 31, 32, last]}
    # the first and the third are chosen; of them the third stays to be seen
    found = objectives.load("rtd").corrupt(text, words, Scripted([1, 3], [0.9, 0.8, 0.8, 0.9, 0.8]))
    assert shown(found, "input_ids", "labels") == {"input_ids": [first, mask, 31, 32, last], "labels": [_, 30, _, 32, _]}


def test_rtd_shows_the_generators_samples_and_asks_about_every_token(tokenizers, monkeypatch):
    words = tokenizers["wordpiece"]
    rtd = objectives.load("rtd")
    model = rtd.build_model(
        words, "electra", hidden_size=16, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=16
    )
    model = model.eval()
    batch = pad([{"input_ids": [2, 4, 31, 4, 3], "labels": [_, 30, _, 32, _]}], 0)
    monkeypatch.setattr(torch.distributions.Categorical, "sample", lambda _: torch.tensor([30, 41]))
    seen = []
    model.discriminator.register_forward_pre_hook(
        lambda _, __, named: seen.append(named["input_ids"].tolist()), with_kwargs=True
    )
    generated, found, replaced = model(**batch)
    assert seen == [[[2, 30, 31, 41, 3]]]
    assert replaced.tolist() == [[False, False, False, True, False]]  # a sample that is right was not replaced
    assert rtd.counts(batch) == {"generator": 2, "discriminator": 5}
    losses = rtd.losses(model, batch)
    nats = -generated.log_softmax(-1)
    assert losses["generator"].item() == pytest.approx((nats[0, 30] + nats[1, 32]).item(), rel=1e-5)
    signs = torch.tensor([[-1.0, -1, -1, 1, -1]])
    assert losses["discriminator"].item() == pytest.approx(torch.nn.functional.softplus(-signs * found).sum().item(), rel=1e-5)
    losses["discriminator"].backward()
    assert model.generator.generator_predictions.dense.weight.grad is None  # no gradient through the samples
    shared = model.discriminator.get_input_embeddings().weight
    assert model.generator.get_input_embeddings().weight is shared
    assert model.generator.generator_lm_head.weight is shared


@pytest.mark.parametrize(("share", "width", "heads"), [(0.25, 8, 1), (0.5, 16, 2), (0.01, 1, 1)])
def test_the_generator_is_as_wide_as_asked(tokenizers, share, width, heads):
    rtd = objectives.load("rtd", {"generator_share": share, "discriminator_weight": 7.0})
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 16}
    generator = rtd.build_model(tokenizers["wordpiece"], "electra", **sizes).generator.config
    assert (generator.hidden_size, generator.num_attention_heads, generator.embedding_size) == (width, heads, 32)
    assert rtd.weights == {"generator": 1.0, "discriminator": 7.0}
    assert objectives.load("rtd").weights == {"generator": 1.0, "discriminator": 50.0}


def test_span_corruption_by_hand(tokenizers):
    words = tokenizers["characters"]
    one, two, three = tokenization.sentinels(words)[:3]
    end = words.eos_token_id
    text = {"input_ids": [110, 111, 112, 113, 114, 115, 116, 117, 118, 119]}
    # four of ten hidden in two spans: the four are cut after 1, the six after 2
    found = objectives.load("span_corruption", {"noise_share": 0.4, "mean_span": 2.0}).corrupt(text, words, Scripted([0], [1]))
    assert shown(found, "input_ids", "labels") == {
        "input_ids": [110, 111, one, 113, 114, 115, 116, two, end],
        "labels": [one, 112, two, 117, 118, 119, three, end],
    }


@pytest.mark.parametrize(("name", "architecture"), [("span_corruption", "t5"), ("denoising", "bart")])
def test_a_decoder_reads_its_targets_and_makes_no_loss_of_its_own(tokenizers, name, architecture):
    objective = objectives.load(name)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 16}
    model = objective.build_model(tokenizers[objective.tokenizer_type], architecture, **sizes).eval()
    batch = pad([{"input_ids": [5, 6, 7], "labels": [8, 9]}, {"input_ids": [5, 6], "labels": [9, 8, 7]}], 0)
    expected, made = model(**batch), []
    model.register_forward_hook(lambda *called: made.append(called[-1]))
    loss = objective.losses(model, batch)["loss"]
    assert loss.item() == pytest.approx(expected.loss.item() * 5, rel=1e-5)
    assert torch.equal(made[0].logits, expected.logits)
    assert made[0].loss is None


def test_a_decoder_that_shifts_its_targets_only_inside_reads_them_too(tokenizers):
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    from pipeline.models.logits import decoder_logits

    config = M2M100Config(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
                          decoder_attention_heads=4, encoder_ffn_dim=16, decoder_ffn_dim=16)  # fmt: skip
    model = M2M100ForConditionalGeneration(config).eval()
    batch = pad([{"input_ids": [5, 6, 7], "labels": [8, 9]}], 0)
    assert torch.equal(decoder_logits(model, batch), model(**batch).logits)


def test_what_can_be_copied_is_no_scorable_target():
    batch = pad([{"input_ids": [2, 4, 31, 32, 3], "labels": [_, 30, 31, 33, _]}], 0)
    for name in ("mlm", "mlm_nsp", "mlm_sop", "rtd"):
        assert objectives.load(name).scorable_targets(batch)["labels"].tolist() == [[_, 30, _, 33, _]]
    assert batch["labels"].tolist() == [[_, 30, 31, 33, _]]  # training asks for them


@pytest.mark.parametrize("length", [2, 3, 7, 50, 511])
def test_spans_cover_their_share_and_never_touch(length):
    for seed in range(20):
        found = spans(length, 0.15, 3.0, np.random.default_rng(seed))
        assert sum(end - start for start, end in found) == max(1, round(length * 0.15))
        assert all(start > before for (start, _), before in zip(found, [0, *(end for _, end in found)], strict=False))
        assert found[-1][1] <= length


def test_denoising_by_hand(tokenizers):
    words = tokenizers["begun_characters"]
    mask, begin, end = words.mask_token_id, words.bos_token_id, words.eos_token_id
    text = {"input_ids": [110, 111, 112, 113, 114, 115, 116, 117, 118, 119], "ends": [4, 10]}
    # the second sentence first; spans of 2, 0 and (cut to what is left) 1; at gaps 1, 3 and 7 of the 7 that stay
    rng = Scripted([1, 0], 2, 0, 5, [1, 3, 7])
    found = objectives.load("denoising", {"noise_share": 0.4}).corrupt(text, words, rng)
    #   114 115 116 117 118 119 110 111 112 113, of which 115 116 and 113 are hidden, and nothing between 118 and 119
    assert shown(found, "input_ids", "labels") == {
        "input_ids": [begin, 114, mask, 117, 118, mask, 119, 110, 111, 112, mask, end],
        "labels": [begin, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119, end],
    }


def test_denoising_gives_back_what_it_does_not_hide(tokenizers):
    words, objective = tokenizers["begun_characters"], objectives.load("denoising", {"permute": False, "mean_span": 1.0})
    for seed, example in enumerate(objective.examples(text_of(words, max_length=50))):
        found = objective.corrupt(example, words, np.random.default_rng(seed))
        kept = [token for token in found["input_ids"] if token != words.mask_token_id]
        assert len(found["input_ids"]) <= len(found["labels"]) <= 50  # it never grows
        text = words.decode(found["labels"], skip_special_tokens=True)
        assert text.strip() in ROWS[example["row"]]["text"]
        assert words(text)["input_ids"][0] == found["labels"][0] == words.bos_token_id
        rest = iter(found["labels"])
        assert all(token in rest for token in kept)  # in their order
        assert 0.1 < 1 - len(kept) / len(found["labels"]) < 0.5


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


# What holds for each of them.


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

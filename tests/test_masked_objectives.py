"""Masked language modelling, sentence pairs and replaced token detection: what the model sees and has to predict, by hand."""

import numpy as np
import pytest
import torch

from pipeline import objectives
from pipeline.data.batches import pad
from pipeline.models.logits import IGNORED
from pipeline.system.errors import UserError
from tests.objectives import ROWS, WORDS, Scripted, shown, text_of

_ = IGNORED


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


def documents(count):
    """Return documents of twelve sentences of many lengths."""
    rng = np.random.default_rng(0)
    return [
        {"text": " ".join("The " + " ".join(rng.choice(WORDS, rng.integers(2, 14))) + "." for _ in range(12))}
        for _ in range(count)
    ]


def test_the_length_of_a_pair_does_not_tell_its_label(tokenizers):
    """Over documents of sentences of many lengths: no threshold on the length is right much more often than chance."""
    rows = documents(150)
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
    rows = documents(400)
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

"""Tokenizers of every kind: the same from every training, no token is part of a character."""

import pytest

from pipeline.models import tokenization
from pipeline.system.errors import UserError
from tests.objectives import ROWS


@pytest.mark.parametrize("kind", sorted(tokenization.KINDS))
def test_a_tokenizer_is_the_same_in_every_training(kind):
    texts = [row["text"] for row in ROWS]
    made = [tokenization.train(texts, 350, 64, kind).backend_tokenizer.to_str() for _ in range(4)]
    assert len(set(made)) == 1


@pytest.mark.parametrize("kind", ["wordpiece", "characters", "words"])
def test_no_token_is_part_of_a_character(kind):
    chinese = "話說天下大勢，分久必合，合久必分。周末七國分爭，并入於秦。" * 20
    made = tokenization.train([chinese], 300, 64, kind)
    for token in made.convert_ids_to_tokens(made.encode(chinese[:29], add_special_tokens=False)):
        assert "�" not in token
        assert made.decode(made.convert_tokens_to_ids([token])).strip() in chinese or token in ("▁", "[UNK]")


def test_a_tokenizer_without_sentinels_is_refused(tokenizers):
    with pytest.raises(UserError, match="no sentinels"):
        tokenization.sentinels(tokenizers["bytes"])


@pytest.mark.parametrize("kind", tokenization.KINDS)
def test_a_kept_tokenizer_is_trained_once_and_saved_as_the_one_that_was_trained(tokenizers, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    trained, whole = [], tokenizers[kind]
    whole.save_pretrained(tmp_path / "whole")
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for number, settings in enumerate([[350, kind], [350, kind], [351, kind]]):
        found = tokenization.kept("rows", settings, lambda: trained.append(1) or whole)
        assert tokenization.identity(found) == tokenization.identity(whole)
        found.save_pretrained(tmp_path / f"{number}")
        assert {path.name: path.read_bytes() for path in (tmp_path / f"{number}").iterdir()} == files
    assert len(trained) == 2, "once, and once more with other settings"
    tokenization.kept("", [350, kind], lambda: trained.append(1) or whole)
    assert len(trained) == 3, "what it is made from is not known, so it is made anew"

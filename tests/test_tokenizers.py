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

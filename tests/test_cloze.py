"""Gaps in held-out sentences: what is hidden, what a model and the unigram say, and the whole way from text to figures."""

import json

import numpy as np
import pytest

from pipeline.evaluation.metrics import cloze
from pipeline.models import tokenization

CHINESE = [{"text": "玄德曰：“吾乃中山靖王之后。”关公大怒，提刀上马。张飞曰：“哥哥何故如此？”\n曹操引兵来到，众将皆惊。"}] * 3


@pytest.fixture(scope="module")
def characters():
    return tokenization.train([row["text"] for row in CHINESE], 200, 64, "wordpiece")


def test_one_letter_of_each_sentence_is_hidden(characters):
    found = cloze.gaps(CHINESE[:1], characters, "zh", 64, 1)
    assert len(found) >= 3
    plain = CHINESE[0]["text"].replace("\n", "")
    for gap in found:
        assert gap.ids.count(characters.mask_token_id) == 1
        assert gap.ids[gap.position] == characters.mask_token_id
        whole = [*gap.ids[: gap.position], gap.answer, *gap.ids[gap.position + 1 :]]
        assert "".join(characters.convert_ids_to_tokens(whole[1:-1])) in plain
        assert characters.convert_ids_to_tokens(gap.answer).isalpha()
    assert found == cloze.gaps(CHINESE[:1], characters, "zh", 64, 1)
    assert found != cloze.gaps(CHINESE[:1], characters, "zh", 64, 2)
    assert all(len(gap.ids) <= 12 for gap in cloze.gaps(CHINESE, characters, "zh", 12, 1))


def test_rests_of_words_and_marks_are_never_hidden():
    made = tokenization.train(["The cat sat, unhappily; happily sat cats."] * 20, 60, 64, "wordpiece")
    tokens = made.convert_ids_to_tokens(range(len(made)))
    may = {token for token, starts in zip(tokens, cloze.word_starts(made), strict=True) if starts}
    assert {"The", "cat"} & may
    assert not any(token.startswith("##") or not token.isalpha() for token in may)


def test_the_unigram_says_the_most_frequent_letter(characters):
    rows = [{"text": "曰曰曰曰，，，，，，，，马"}]
    said, other = characters.convert_tokens_to_ids(["曰", "马"])
    found = [cloze.Gap([2, 4, 3], 1, said), cloze.Gap([2, 4, 3], 1, other)]
    sure = np.full(len(characters), 9.0)
    sure[other] = 0.1
    unigram = cloze.frequencies(characters, rows)
    figures = {
        (one.model, one.metric): one.figure.items[:, 0].tolist()
        for label, nats in (("mine", sure), ("unigram", unigram)) for one in cloze.measured(label, [nats, nats], found)
    }  # fmt: skip
    assert figures["unigram", "cloze"] == [1, 0]
    assert figures["mine", "cloze"] == [0, 1]
    assert figures["mine", "cloze_loss"] == [9.0, 0.1]
    letters = cloze.word_starts(characters).sum()
    assert figures["unigram", "cloze_loss"] == pytest.approx([-np.log(5 / (5 + letters)), -np.log(2 / (5 + letters))])
    samples = cloze.samples(found, {"mine": [sure, sure]}, unigram, characters, 2)
    assert samples[0]["prompt"] == "[MASK] (曰)"
    assert samples[0]["answers"]["unigram"] == "曰"
    assert samples[0]["answers"]["mine"].startswith("马 90%")


def test_a_model_of_chinese_fills_gaps(run, tmp_path):
    """The whole way: on a text that says one of three things again and again it learns what stands in a gap."""
    told = ["玄德乃汉室宗亲，人称皇叔。", "关公提青龙刀上马出阵。", "张飞挺丈八蛇矛大喝一声。"]
    rng = np.random.default_rng(0)
    data = tmp_path / "text.jsonl"
    rows = [{"text": "".join(rng.choice(told, 6))} for _ in range(700)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--hidden_size", 32, "--num_hidden_layers", 2, "--num_attention_heads", 2, "--vocab_size", 100, "--max_length", 64]
    status, _, err = run(
        "pretrain", "--data", data, "--output", tmp_path / "pretrain", "--objective", "mlm", "--language", "zh",
        "--architecture", "modernbert", "--max_steps", 200, "--learning_rate", 1e-2, *sizes,
    )  # fmt: skip
    assert status == 0, err
    status, out, err = run("evaluate", "--runs", tmp_path, "--samples", 2)
    assert status == 0, err
    found = json.loads((tmp_path / "evaluate.json").read_text())
    better = {
        item["metric"]: item["better"] for item in found["nodes"]["pretrain"]["comparisons"] if item["against"] == "unigram"
    }
    assert better == {"loss": True, "cloze": True, "cloze_loss": True}
    cloze_of = found["nodes"]["pretrain"]["figures"]["cloze"]
    assert cloze_of["pretrain"]["value"] > 0.6 > cloze_of["unigram"]["value"]
    assert len(found["samples"]) == 2
    assert "[MASK]" in found["samples"][0]["prompt"]
    assert " " not in found["samples"][0]["prompt"].split(" (")[0]
    assert "cloze" in out

"""The report shows the batches that the nodes read, and says where it can't."""

import json
import re
import shutil

import pytest

from pipeline import objectives
from pipeline.chain import finished, manifest
from pipeline.models import tokenization
from pipeline.report import batches, lines, page
from pipeline.report.nodes import nodes
from pipeline.training.trainer import ROW, StageTrainer
from tests.conftest import SMALL, flags_of
from tests.objectives import NAMES


@pytest.fixture
def seen(monkeypatch):
    """The batches that nodes train on, as they come."""
    found = []
    real = StageTrainer.training_step

    def spy(self, model, inputs, *more):
        found.append({key: value for key, value in inputs.items() if key != ROW})
        return real(self, model, inputs, *more)

    monkeypatch.setattr(StageTrainer, "training_step", spy)
    return found


def agrees(folder, batch):
    """Hold a node's first batch, made again, against the one that it read."""
    record = manifest.read(folder)
    made = batches.first(finished.read(folder))
    wanted = lines.split(batch, record["family"], tokenization.load(str(folder)))
    assert made.rows == sum(len(ids) for key, ids in batch.items() if key.endswith("input_ids"))
    assert len(made.lines) + made.more == len(wanted)
    assert list(made.lines) == wanted[: len(made.lines)]
    assert made.agrees is True
    return made


@pytest.mark.parametrize("name", ["pretrain", "sft", "dpo"])
def test_the_first_batch_is_the_one_that_the_node_read(run, copy, data, tmp_path, seen, name):
    more = ["--gradient_accumulation_steps", "2"] if name != "dpo" else ["--train_sampling_strategy", "group_by_length"]
    status, _, err = run(name, *flags_of(name, copy, data, tmp_path / name), *more)
    assert status == 0, err
    made = agrees(tmp_path / name, seen[0])
    assert 0 < made.counted < made.read
    text = "".join(token.text for token in made.lines[0].tokens if token.counts)
    wanted = {"pretrain": r"saw the", "sft": r"^The \w+ did\.<\|im_end\|>", "dpo": r"^The \w+ did\.<\|im_end\|>$"}
    assert re.search(wanted[name], text), text
    if name == "dpo":
        assert [line.name for line in made.lines[:2]] == ["pair 1, chosen", "pair 1, rejected"]
        assert "And so on" in "".join(token.text for token in made.lines[1].tokens if token.counts)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "causal"])
def test_every_objective_shows_what_it_asks(run, data, tmp_path, seen, name):
    folder = tmp_path / "pretrain"
    given = [*SMALL["pretrain"], "--objective", name]
    given[given.index("--max_steps") + 1] = "1"
    status, _, err = run("pretrain", "--output", folder, "--data", data / "text.jsonl", *given)
    assert status == 0, err
    made = agrees(folder, seen[0])
    family = objectives.load(name).family
    assert bool(made.counted) == (family != "embedder" or name == "fusion")  # one part of which hides tokens
    if family == "masked":
        assert any(token.saw == "[MASK]" and token.text != "[MASK]" for line in made.lines for token in line.tokens)
    if family == "seq2seq":
        assert not any(token.counts for token in made.lines[0].tokens)
        assert all(token.counts for token in made.lines[1].tokens)
    text = page.render(tmp_path, nodes(tmp_path), "x")
    assert "Not measured yet" in text
    assert "<mark>" in text.split('id="masks"')[1].split("</p>", 2)[2] or family == "embedder"


def test_a_recipe_that_changed_is_said_and_not_shown(copy, data, monkeypatch, tmp_path):
    shutil.copy(data / "chats.jsonl", tmp_path / "chats.jsonl")
    record = manifest.read(copy / "sft")
    record["recipe"]["data"] = str(tmp_path / "chats.jsonl")
    (copy / "sft" / manifest.NAME).write_text(json.dumps(record))
    assert "is no longer what" not in page.render(copy, nodes(copy), "x")
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho."}]}\n')
    text = page.render(copy, nodes(copy), "x")
    assert "is no longer what sft was made with" in text
    assert text.count("first step: the same") == 2


def test_a_node_that_can_not_be_shown_whole_says_why(copy):
    log = copy / "sft" / "log.jsonl"
    log.write_text(log.read_text().replace('"tokens": ', '"tokens": 1', 1))
    (copy / "dpo" / "tokenizer.json").write_text("{}")
    manifest.write_json(copy / "pretrain" / manifest.NAME, manifest.read(copy / "pretrain") | {"stage": "removed"})
    text = page.render(copy, nodes(copy), "x")
    assert "several processes read it, or code or libraries have changed since" in text
    assert "tokenizer.json is not the file that was made" in text
    assert "removed: no such script in stages/" in text


def test_tokens_of_one_character_show_together():
    tokenizer = tokenization.train(["abc"], 262, 64)
    ids = tokenizer.encode("a中\nb")
    assert lines.texts(tokenizer, ids, set(tokenizer.all_special_ids)) == ["a", "", "", "中", "\n", "b"]
    assert lines.texts(tokenizer, ids[:3], set())[-1] == "\N{REPLACEMENT CHARACTER}"
    assert page.visible("a\n\tb\x1b\u202e") == "a↵\n⇥\tb␛⟨U+202E⟩"


def test_what_is_not_shown_of_a_batch_is_counted_as_it_is():
    def batch(more, paired):
        return batches.Batch([lines.Line("chosen", [], second=paired)], more, 1, 1, 1, "", None, 1, "tokens")

    assert [batch(*of).rest for of in ((0, False), (1, False), (2, True), (4, True))] == [
        "",
        "1 more row",
        "1 more pair",
        "2 more pairs",
    ]


def test_pairs_are_told_from_rows_with_a_prompt():
    """Two answers to one prompt are a pair; a desirable and an undesirable answer to two prompts are not."""
    import torch

    tokenizer = tokenization.train(["abc"], 262, 64)
    masks = torch.tensor([[0, 0, 1], [0, 0, 1]])
    pair = {"input_ids": torch.tensor([[7, 8, 1], [7, 8, 9]]), "completion_mask": masks}
    assert [line.name for line in lines.split(pair, "causal", tokenizer)] == ["pair 1, chosen", "pair 1, rejected"]
    rows = lines.split(pair | {"input_ids": torch.tensor([[7, 8, 1], [9, 8, 1]])}, "causal", tokenizer)
    assert [line.name for line in rows] == ["row 1", "row 2"]
    assert [token.counts for token in rows[0].tokens] == [False, False, True]
